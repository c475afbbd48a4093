"""Runs lm-evaluation-harness, unchanged, against `codex serve`, and compares its scores and its samples, item by item, with those of
`codex evaluate` of the same model. Prints what it compared; an assertion ends it with an error.

    python harness.py CODEX MODEL

This Python has lm-eval with its extra `api`, and transformers, whose tokenizer the harness needs to find the tokens of a continuation.
MODEL is a model directory with a chat template.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

CODEX, MODEL = (str(pathlib.Path(name).resolve()) for name in sys.argv[1:3])
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = ROOT / "configs/benchmarks/gym-chain-sum"
WIKITEXT = ROOT / "trainer-image/src/harness/tasks"
PROBLEMS = 40
# How far the sums of log-probabilities may differ: the server returns that of each token in single precision.
ROUNDING = 1e-4
# Longer than any of the runs takes.
SECONDS = 1200


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def run(place, *command):
    # Neither program needs a hub, and what lm-eval caches goes with the folder.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "cache")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, (command, done.stdout[-4000:], done.stderr[-4000:])
    return done.stdout


def write_data(place):
    problems = lines(DATA / "problems.jsonl")[:PROBLEMS]
    examples = lines(DATA / "train.jsonl")[:3]
    for name, records in {"problems.jsonl": problems, "examples.jsonl": examples}.items():
        pairs = ({"question": it["prompt"], "answer": it["response"].rsplit("#", 1)[1]} for it in records)
        (place / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for name, records in {"choices.jsonl": problems, "choice_examples.jsonl": examples}.items():
        documents = (choices_of(number, record) for number, record in enumerate(records))
        (place / name).write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name in ("gym_sums.yaml", "gym_chat.yaml", "gym_choices.yaml"):
        shutil.copy(HERE / name, place)
    for file in WIKITEXT.glob("tiny_wikitext.*"):
        shutil.copy(file, place)


def choices_of(number, record):
    """Returns a sum with its answer among wrong ones."""
    right = int(record["response"].rsplit("#", 1)[1])
    choices = [right + 1, right - 1, right + 10]
    label = number % (len(choices) + 1)
    choices.insert(label, right)
    return {"question": record["prompt"], "choices": [str(choice) for choice in choices], "label": label}


@contextlib.contextmanager
def served():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([CODEX, "serve", MODEL, "--unsigned", "--listen", address], stdout=log, stderr=log)
        try:
            for _ in range(SECONDS):
                assert server.poll() is None, (log.seek(0), log.read()[-4000:])
                with contextlib.suppress(OSError):
                    if urllib.request.urlopen(f"http://{address}/ready").status == 200:
                        break
                time.sleep(0.1)
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait(60)


def lm_eval(place, url, task, kind, *more, tokenizer="tokenizer_backend=None"):
    """Returns the results and the samples of a task; four requests at once."""
    path = "chat/completions" if kind == "local-chat-completions" else "completions"
    arguments = f"model=codex,base_url={url}/v1/{path},{tokenizer},num_concurrent=4,max_retries=1"
    out = place / f"lm-eval-{task}"
    command = ["run", "--model", kind, "--model_args", arguments, "--tasks", task, "--include_path", str(place)]
    run(place, sys.executable, "-m", "lm_eval", *command, "--output_path", str(out), "--log_samples", *more)
    results = json.loads(only(out, "**/results_*.json").read_text())["results"][task]
    return results, lines(only(out, f"**/samples_{task}_*.jsonl")), only(out, f"**/samples_{task}_*.jsonl")


def by_item(samples):
    return {(sample["doc_id"], sample["filter"]): sample for sample in samples}


def completions(place, url):
    theirs, their_samples, path = lm_eval(place, url, "gym_sums", "local-completions")
    run(place, CODEX, "evaluate", "--task", "gym_sums.yaml", "--model", MODEL, "--output", "codex")
    ours = json.loads(only(place / "codex", "results_*.json").read_text())["results"]["gym_sums"]
    for name in ("none", "last-number"):
        for metric in (f"exact_match,{name}", f"exact_match_stderr,{name}"):
            assert abs(ours[metric] - theirs[metric]) < 1e-12, (metric, ours[metric], theirs[metric])
    our_path = only(place / "codex", "samples_*.jsonl")
    ours_by, theirs_by = by_item(lines(our_path)), by_item(their_samples)
    assert ours_by.keys() == theirs_by.keys() and len(ours_by) == 2 * PROBLEMS, (len(ours_by), len(theirs_by))
    for item, own in ours_by.items():
        for field in ("target", "resps", "filtered_resps", "exact_match", "doc_hash", "prompt_hash", "target_hash"):
            found = theirs_by[item][field]
            # The harness leaves out the list around the one response.
            expected = own[field] if field != "filtered_resps" else [own[field][0]]
            assert found == expected, (item, field, own[field], found)
    right = ours["exact_match,last-number"]
    assert 0 < right < 1, f"exact_match is {right}: such a comparison shows little"
    # Gates judge both files, whose names they print first.
    (place / "gates.yaml").write_text('- { metric: exact_match, min: "0" }\n')
    gate = [CODEX, "gate", "--metric", "exact_match", "--filter", "last-number", "--gates", "gates.yaml"]
    told = [run(place, *gate, "--lm-eval", str(samples)).split("\n", 1)[1] for samples in (our_path, path)]
    assert told[0] == told[1] and f"{right} over {PROBLEMS} items" in told[0], told
    print(f"local-completions: {PROBLEMS} responses are those of codex evaluate --task; exact_match", right)


def chats(place, url):
    theirs, samples, _ = lm_eval(place, url, "gym_chat", "local-chat-completions", "--apply_chat_template")
    preset = ["--preset", "gym-chain-sum", "--set", f"evaluation.limit={PROBLEMS}", "--model", MODEL, "--output", "preset"]
    run(place, CODEX, "evaluate", *preset)
    records = {record["line"] - 1: record for record in lines(place / "preset/records.ndjson")}
    assert len(samples) == len(records) == PROBLEMS
    for sample in samples:
        record = records[sample["doc_id"]]
        assert sample["doc"]["question"] == record["prompt"], sample
        assert sample["resps"] == [[record["prediction"]]], (sample, record)
        assert sample["exact_match"] == float(record["correct"]), (sample, record)
    measured = json.loads((place / "preset/evaluation.json").read_text())["metrics"]["exact_match"]
    right = measured["successes"] / measured["n"]
    assert theirs["exact_match,last-number"] == right, (theirs, measured)
    print(f"local-chat-completions: {PROBLEMS} responses are those of the preset gym-chain-sum; exact_match", right)
    evaluated(place, url, records)


def evaluated(place, url, records):
    """Compares what the server's own /evaluate measures with the same evaluation."""
    body = {"preset": "gym-chain-sum", "problems": lines(DATA / "problems.jsonl")[:PROBLEMS]}
    with urllib.request.urlopen(f"{url}/evaluate", json.dumps(body).encode(), timeout=SECONDS) as response:
        reply = json.load(response)
    assert len(reply["items"]) == len(records), reply
    for item in reply["items"]:
        record = records[item["line"] - 1]
        for field in ("prompt", "reference", "prediction", "expected", "answer", "correct"):
            assert item[field] == record[field], (field, item, record)
    measured = json.loads((place / "preset/summary.json").read_text())["metrics"]["exact_match"]
    assert reply["metrics"]["exact_match"] == measured, (reply["metrics"], measured)
    print(f"/evaluate: {PROBLEMS} responses and exact_match with its bounds are those of the preset gym-chain-sum:", measured)


def pairs(sample):
    """Returns the log-probability of each continuation, and whether the model would write it. The harness writes both as texts."""
    return [(float(value), str(greedy) in ("True", "true")) for ((value, greedy),) in sample["resps"]]


def likelihoods(place, url, task, documents, metrics):
    """Compares a task that needs log-probabilities of the prompt, for which the harness needs a tokenizer."""
    tokenizer = f"tokenizer_backend=huggingface,tokenizer={MODEL}"
    theirs, their_samples, _ = lm_eval(place, url, task, "local-completions", tokenizer=tokenizer)
    out = place / f"codex-{task}"
    run(place, CODEX, "evaluate", "--task", f"{task}.yaml", "--model", MODEL, "--output", str(out))
    ours = json.loads(only(out, "results_*.json").read_text())["results"][task]
    ours_by = {sample["doc_id"]: sample for sample in lines(only(out, "samples_*.jsonl"))}
    assert len(their_samples) == len(ours_by) == documents, (len(their_samples), len(ours_by))
    for sample in their_samples:
        found, expected = pairs(sample), pairs(ours_by[sample["doc_id"]])
        assert len(found) == len(expected), (found, expected)
        for (value, greedy), (own, own_greedy) in zip(found, expected):
            assert abs(value - own) < ROUNDING and greedy == own_greedy, (sample["doc_id"], found, expected)
    for metric in metrics:
        own, found = ours[f"{metric},none"], theirs[f"{metric},none"]
        assert abs(own - found) < ROUNDING * max(1.0, abs(own)), (metric, own, found)
    shown = ", ".join(f"{metric} {ours[f'{metric},none']}" for metric in metrics)
    print(f"{task}: the log-probabilities of {documents} documents are those of codex evaluate --task; {shown}")


def main():
    with tempfile.TemporaryDirectory() as folder, served() as url:
        place = pathlib.Path(folder)
        write_data(place)
        completions(place, url)
        chats(place, url)
        likelihoods(place, url, "gym_choices", PROBLEMS, ("acc", "acc_norm"))
        likelihoods(place, url, "tiny_wikitext", 12, ("acc", "perplexity"))


main()
