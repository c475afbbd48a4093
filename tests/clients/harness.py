"""Runs lm-evaluation-harness, unchanged, against `codex serve`, and compares its scores and its samples, item by item, with those of
`codex evaluate` of the same model. Prints what it compared; an assertion ends it with an error.

    python harness.py CODEX MODEL

This Python has lm-eval with its extra `api`. MODEL is a model directory with a chat template.
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
import urllib.error
import urllib.request

CODEX, MODEL = (str(pathlib.Path(name).resolve()) for name in sys.argv[1:3])
HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "configs/benchmarks/gym-chain-sum"
PROBLEMS = 40
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
    for name in ("gym_sums.yaml", "gym_chat.yaml"):
        shutil.copy(HERE / name, place)


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


def lm_eval(place, url, task, kind, *more):
    """Returns the results and the samples of a task; four requests at once."""
    path = "chat/completions" if kind == "local-chat-completions" else "completions"
    arguments = f"model=codex,base_url={url}/v1/{path},tokenizer_backend=None,num_concurrent=4,max_retries=1"
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


def likelihoods(url):
    """Tasks that need log-probabilities of the prompt are refused, by the name of the field."""
    body = {"model": "codex", "prompt": "1 + 1", "max_tokens": 1, "logprobs": 1, "echo": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        told = json.load(error)["error"]
        assert error.code == 400 and told["param"] == "echo" and "codex evaluate --task" in told["message"], told
        print("loglikelihood:", told["message"])
        return
    raise AssertionError("echo was not refused")


def main():
    with tempfile.TemporaryDirectory() as folder, served() as url:
        place = pathlib.Path(folder)
        write_data(place)
        completions(place, url)
        chats(place, url)
        likelihoods(url)


main()
