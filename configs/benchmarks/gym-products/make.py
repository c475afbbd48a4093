"""Writes problems.jsonl (held out) and train.jsonl from reasoning-gym's products, and SHA256SUMS over both.

    pip install reasoning-gym==0.1.25
    python make.py

reasoning-gym generates the questions and the answers. The steps in the responses are written here: one line for each digit of the
second factor, digit by digit from the ones with the carry, and then the sum of the lines, column by column.
"""

import hashlib
import json
import pathlib
import re

import reasoning_gym

DIGITS = (1, 2)
HELD_OUT, HELD_OUT_SEED = 200, 2026
# (count, seed, digits): half of the training data has factors of two digits only, because these are harder.
TRAIN = [(1200, 1, DIGITS), (1200, 2, (2, 2))]


def line(number, digit, place):
    """Returns `number * digit * 10**place` as a line with its columns, and the value."""
    texts, carry = [], 0
    for one in map(int, reversed(str(number))):
        value = one * digit + carry
        texts.append(f"{one}*{digit}" + (f"+{carry}" if carry else "") + f"={value}")
        carry = value // 10
    total = number * digit * 10**place
    return f"{number}*{digit * 10**place}: {' '.join(texts)} ={total}", total


def added(left, right):
    """Returns `left + right` as a line with its columns, and the value."""
    texts, carry = [], 0
    for at in range(max(len(str(left)), len(str(right)))):
        one, two = left // 10**at % 10, right // 10**at % 10
        value = one + two + carry
        texts.append(f"{one}+{two}" + (f"+{carry}" if carry else "") + f"={value}")
        carry = value // 10
    return f"{left}+{right}: {' '.join(texts)} ={left + right}", left + right


def solution(left, right):
    """Returns the steps of `left * right`, and its value."""
    steps, total = [], None
    for place, digit in enumerate(map(int, reversed(str(right)))):
        text, value = line(left, digit, place)
        steps.append(text)
        if total is not None:
            text, value = added(total, value)
            steps.append(text)
        total = value
    return "\n".join([*steps, f"#{total}"]), total


def records(count, seed, digits, exclude):
    """Returns `count` distinct records whose questions are not in `exclude`."""
    dataset = reasoning_gym.create_dataset(
        "products", size=8 * count, seed=seed, min_terms=2, max_terms=2, min_digits=digits[0], max_digits=digits[1]
    )
    found = {}
    for item in dataset:
        question, expression = item["question"], item["metadata"]["expression"]
        if question in exclude or question in found:
            continue
        factors = re.fullmatch(r"(\d+) \* (\d+)", expression)
        assert factors, expression
        left, right = map(int, factors.groups())
        response, value = solution(left, right)
        assert str(value) == item["answer"], (expression, value, item["answer"])
        difficulty = {2: "easy", 3: "medium", 4: "hard"}[len(str(left)) + len(str(right))]
        found[question] = {"prompt": question, "response": response, "difficulty": difficulty, "category": "products"}
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
