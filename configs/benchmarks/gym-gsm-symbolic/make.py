"""Writes problems.jsonl from reasoning-gym's gsm_symbolic, and SHA256SUMS.

    pip install reasoning-gym==0.1.25
    python make.py

reasoning-gym generates the questions, the worked solutions and the answers. The last line of every response is `#### ` and the
answer.
"""

import hashlib
import json
import pathlib

import reasoning_gym

COUNT, SEED = 200, 2026


def main():
    here, found = pathlib.Path(__file__).parent, {}
    dataset = reasoning_gym.create_dataset("gsm_symbolic", size=4 * COUNT, seed=SEED)
    for item, template in zip(dataset, dataset.task_indices):
        question, answer = item["question"].strip(), item["answer"]
        if question in found or not answer.lstrip("-").isdigit():
            continue
        worked = item["metadata"]["answer_cot"].split("####")[0].strip()
        found[question] = {
            "prompt": question,
            "response": f"{worked}\n#### {answer}",
            "difficulty": "hard",
            "category": "gsm_symbolic",
            "cluster": f"template-{template:02}",
        }
        if len(found) == COUNT:
            break
    else:
        raise SystemExit(f"only {len(found)} of {COUNT} distinct problems")
    data = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in found.values()).encode()
    (here / "problems.jsonl").write_bytes(data)
    (here / "SHA256SUMS").write_text(f"{hashlib.sha256(data).hexdigest()}  problems.jsonl\n")


if __name__ == "__main__":
    main()
