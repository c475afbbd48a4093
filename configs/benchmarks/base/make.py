"""Writes the problems of the presets base, math and tools, with the same bytes on every machine.

    python3 make.py            # writes problems.jsonl and SHA256SUMS of all three folders

Only whole numbers of Python's random.Random are used, through randrange, which is stable between versions.
"""

import hashlib
import json
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
LEVELS = ["easy", "medium", "hard"]


def pick(rng, items):
    return items[rng.randrange(len(items))]


def shuffled(rng, items):
    items = list(items)
    for at in range(len(items) - 1, 0, -1):
        other = rng.randrange(at + 1)
        items[at], items[other] = items[other], items[at]
    return items


def proof(rng):
    """A chain of implications, with others that lead nowhere."""
    length = 2 + rng.randrange(3)
    names = shuffled(rng, "abcdefghijkmnopqrstuvwxyz")
    chain, rest = names[: length + 1], names[length + 1 :]
    rules = [f"{a}>{b}" for a, b in zip(chain, chain[1:])]
    astray = [f"{pick(rng, chain)}>{rest[0]}", f"{rest[1]}>{chain[-1]}"][: 1 + rng.randrange(2)]
    given = ", ".join([chain[0]] + shuffled(rng, rules + astray))
    steps = " ".join(f"{a},{a}>{b}={b}" for a, b in zip(chain, chain[1:]))
    return f"Given {given}. Prove {chain[-1]}:", f"{steps} #{chain[-1]}$", LEVELS[length - 2], "proof_logs"


THINGS = ["pens", "apples", "coins", "books", "stones", "tickets"]


def story(rng):
    """One to three calculations about things, the last of some with a fraction."""
    thing, kind = pick(rng, THINGS), rng.randrange(3)
    a, b, c = 2 + rng.randrange(40), 2 + rng.randrange(9), 1 + rng.randrange(30)
    if kind == 0:
        return (
            f"{a} {thing} lie on a table. {c} more are put there. How many {thing} lie there?",
            f"{a}+{c}={a + c} #{a + c}$",
            "easy",
            "math_word_problems",
        )
    if kind == 1:
        c = 1 + rng.randrange(a * b - 1)
        return (
            f"{b} boxes hold {a} {thing} each. {c} {thing} are taken out. How many {thing} are left?",
            f"{b}*{a}={a * b} {a * b}-{c}={a * b - c} #{a * b - c}$",
            "medium",
            "math_word_problems",
        )
    parts = pick(rng, [2, 4, 5, 8])
    share = f"{(a + c) * 1000 // parts / 1000:g}"
    return (
        f"Two sacks weigh {a} kg and {c} kg. Both are divided into {parts} equal parts. How many kg has a part?",
        f"{a}+{c}={a + c} {a + c}/{parts}={share} #{share}$",
        "hard",
        "math_word_problems",
    )


TOPICS = ["tides", "granite", "sundials", "swifts", "glaciers", "bread", "bridges", "chess"]


def call(name, **arguments):
    return "<tool_call>" + json.dumps({"name": name, "arguments": arguments}, separators=(",", ":")) + "</tool_call>"


def tool(rng):
    """One or two calls of tools."""
    a, b, kind = 10 + rng.randrange(90), 2 + rng.randrange(40), rng.randrange(4)
    topic = pick(rng, TOPICS)
    if kind == 0:
        prompt, calls = f"Use calculator: {a}*{b}", [call("calculator", expression=f"{a}*{b}")]
        answer, level = str(a * b), "easy"
    elif kind == 1:
        prompt, calls = f"Use browser: look up {topic} {a}", [call("browser", query=f"{topic} {a}")]
        answer, level = "done", "easy"
    elif kind == 2:
        prompt, calls = f"Use python_repl: print sum(range({a}))", [call("python_repl", code=f"print(sum(range({a})))")]
        answer, level = str(a * (a - 1) // 2), "medium"
    else:
        prompt = f"Use browser, then calculator: look up {topic}, then {a}+{b}"
        calls = [call("browser", query=topic), call("calculator", expression=f"{a}+{b}")]
        answer, level = str(a + b), "hard"
    return f"{prompt}:", f"{' '.join(calls)} #{answer}$", level, "tool_traces"


def write(preset, seed, kinds, count=50):
    rng, lines, seen = Random(seed), [], set()
    for kind in kinds:
        made = 0
        while made < count:
            prompt, response, difficulty, category = kind(rng)
            if prompt in seen:
                continue
            seen.add(prompt)
            made += 1
            record = {"prompt": prompt, "response": response, "difficulty": difficulty, "category": category}
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
    folder = HERE.parent / preset
    data = "".join(lines).encode()
    (folder / "problems.jsonl").write_bytes(data)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(data).hexdigest()}  problems.jsonl\n")


write("base", 11, [proof, story, tool])
write("math", 13, [proof, story])
write("tools", 17, [tool])
