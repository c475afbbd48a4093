"""Writes problems.jsonl (held out) and train.jsonl from reasoning-gym's chain_sum, and SHA256SUMS over both.

    pip install reasoning-gym==0.1.25
    python make.py

reasoning-gym generates the questions and the answers. The steps in the responses are written here: each addition or
subtraction is split into tens and ones, so that a model never borrows across two digits at once.
"""

import hashlib
import json
import pathlib
import re

import reasoning_gym

TERMS, DIGITS = (2, 4), (1, 2)
HELD_OUT, TRAIN = 200, 2400
HELD_OUT_SEED, TRAIN_SEED = 2026, 1


def tens_first(total, sign, term):
    """Returns `total ± term` for total >= 0 and a result >= 0, in at most two steps, and the result."""
    tens, ones = term - term % 10, term % 10
    steps, parts = [], [tens, ones] if tens and ones else [term]
    for part in parts:
        after = total + part if sign == "+" else total - part
        steps.append(f"{total} {sign} {part} = {after}")
        total = after
    return ", ".join(steps), total


def step(total, sign, term):
    """Returns one step of the solution as text, and the new total."""
    after = total + term if sign == "+" else total - term
    head = f"{total} {sign} {term}"
    if total >= 0 and after >= 0:
        text, result = tens_first(total, sign, term)
        return (text if text == f"{head} = {after}" else f"{head}: {text}"), result
    size = abs(total)
    if total < 0 and sign == "-":
        inner, result = f"{size} + {term}", tens_first(size, "+", term)
    elif size >= term:
        inner, result = f"{size} - {term}", tens_first(size, "-", term)
    else:
        inner, result = f"{term} - {size}", tens_first(term, "-", size)
    text, magnitude = result
    assert magnitude == abs(after)
    text = text if text == f"{inner} = {magnitude}" else f"{inner}: {text}"
    return f"{head}: {text}" + (f"; {after}" if after < 0 else ""), after


def solution(expression):
    """Returns the steps of an expression such as `4 - 1 - 7`, and its value."""
    parts = expression.split()
    total, steps = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2]):
        text, total = step(total, sign, int(term))
        steps.append(text)
    return ". ".join(steps) + f". #{total}", total


def records(count, seed, exclude):
    """Returns `count` distinct records whose questions are not in `exclude`."""
    dataset = reasoning_gym.create_dataset(
        "chain_sum", size=4 * count, seed=seed, min_terms=TERMS[0], max_terms=TERMS[1], min_digits=DIGITS[0], max_digits=DIGITS[1]
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
    held_out = records(HELD_OUT, HELD_OUT_SEED, set())
    train = records(TRAIN, TRAIN_SEED, {record["prompt"] for record in held_out})
    sums = []
    for name, rows in (("problems.jsonl", held_out), ("train.jsonl", train)):
        data = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows).encode()
        (here / name).write_bytes(data)
        sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    (here / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
