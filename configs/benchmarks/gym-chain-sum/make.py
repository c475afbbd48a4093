"""Writes problems.jsonl (held out) and train.jsonl from reasoning-gym's chain_sum, and SHA256SUMS over both.

    pip install reasoning-gym==0.1.25
    python make.py

reasoning-gym generates the questions and the answers. The steps in the responses are written here: column by column from the
ones, with the carry as a third term and a borrowed ten in front of its column, so that no digit is written before it is known.
"""

import hashlib
import json
import pathlib
import re

import reasoning_gym

TERMS, DIGITS = (2, 4), (1, 2)
HELD_OUT, HELD_OUT_SEED = 200, 2026
# (count, seed, digits): half of the training data has numbers of two digits only, because these are harder.
TRAIN = [(1200, 1, DIGITS), (1200, 2, (2, 2))]


def columns(left, sign, right):
    """Returns the columns of `left ± right` for a result >= 0, from the ones, each with the carry or borrow from the last."""
    width = max(len(str(left)), len(str(right)))
    texts, carried = [], 0
    for at in range(width):
        one, two = left // 10**at % 10, right // 10**at % 10
        value = one + two + carried if sign == "+" else one - two - carried
        borrowed = value < 0
        text = f"{10 + one if borrowed else one}{sign}{two}" + (f"{sign}1" if carried else "")
        texts.append(f"{text}={value + 10 if borrowed else value}")
        carried = int(borrowed or value > 9)
    return " ".join(texts)


def step(total, sign, term):
    """Returns one step of the solution as a line, and the new total."""
    after, size = total + term if sign == "+" else total - term, abs(total)
    head = f"{total}{sign}{term}"
    if total >= 0 and after >= 0:
        left, inner, right = total, sign, term
    elif total < 0 and sign == "-":
        left, inner, right = size, "+", term
    else:
        left, inner, right = max(size, term), "-", min(size, term)
    if total < 0 or after < 0:
        head += f"=-({left}{inner}{right})" if after < 0 else f"={left}{inner}{right}"
    if max(left, right) < 10:
        return f"{head}={after}", after
    return f"{head}: {columns(left, inner, right)} ={after}", after


def solution(expression):
    """Returns the steps of an expression such as `4 - 1 - 7`, and its value."""
    parts = expression.split()
    total, steps = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2]):
        text, total = step(total, sign, int(term))
        steps.append(text)
    return "\n".join([*steps, f"#{total}"]), total


def records(count, seed, digits, exclude):
    """Returns `count` distinct records whose questions are not in `exclude`."""
    dataset = reasoning_gym.create_dataset(
        "chain_sum", size=4 * count, seed=seed, min_terms=TERMS[0], max_terms=TERMS[1], min_digits=digits[0], max_digits=digits[1]
    )
    found = {}
    for item in dataset:
        question = item["question"]
        if question in exclude or question in found:
            continue
        expression = item["metadata"]["expression"]
        assert re.fullmatch(r"\d+( [+-] \d+)+", expression), expression
        response, value = solution(expression)
        assert str(value) == item["answer"], (expression, value, item["answer"])
        difficulty = {2: "easy", 3: "medium", 4: "hard"}[item["metadata"]["num_terms"]]
        found[question] = {"prompt": question, "response": response, "difficulty": difficulty, "category": "chain_sum"}
        if len(found) == count:
            return list(found.values())
    raise SystemExit(f"only {len(found)} of {count} distinct records")


def main():
    here = pathlib.Path(__file__).parent
    held_out = records(HELD_OUT, HELD_OUT_SEED, DIGITS, set())
    seen, train = {record["prompt"] for record in held_out}, []
    for count, seed, digits in TRAIN:
        train += records(count, seed, digits, seen)
        seen |= {record["prompt"] for record in train}
    sums = []
    for name, rows in (("problems.jsonl", held_out), ("train.jsonl", train)):
        data = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows).encode()
        (here / name).write_bytes(data)
        sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    (here / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
