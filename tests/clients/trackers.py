"""Reads what a run wrote for TensorBoard, MLflow and Weights & Biases with these programs themselves, and compares it with the run's ledger: tags,
steps, values, times. Prints what it compared; an assertion ends it with an error.

    python trackers.py RUN EXPORTED

RUN is the directory of a run with the trackers csv, tensorboard, mlflow.files and wandb, which was resumed. EXPORTED holds what
`codex metrics export` wrote of it: tensorboard/, mlruns/ and wandb/.
"""

import csv
import datetime
import json
import os
import pathlib
import struct
import subprocess
import sys

# The file store is in maintenance; without this variable MLflow refuses to open one.
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"

from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN, EXPORTED = map(pathlib.Path, sys.argv[1:3])
ARTIFACTS = RUN / "artifacts"


def single(value):
    """Rounds to the precision of TensorBoard's scalars."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def seconds(row):
    return datetime.datetime.fromisoformat(row["timestamp"]).timestamp()


def series():
    """Returns the rows of the ledger by the names that trackers show."""
    found = {}
    for line in (ARTIFACTS / "metrics.ndjson").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(f"{row['split']}/{row['metric']}", []).append(row)
    return found


def tensorboard(directory, rows):
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(rows), events.Tags()
    for tag, expected in rows.items():
        found = events.Scalars(tag)
        assert [event.step for event in found] == [row["step"] for row in expected], (tag, found)
        assert [event.value for event in found] == [single(row["value"]) for row in expected], tag
        assert all(abs(event.wall_time - seconds(row)) < 1e-3 for event, row in zip(found, expected)), tag
    assert events.Tags()["tensors"] == ["settings/text_summary"], events.Tags()
    (text,) = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val
    assert b"| training.max_steps | 12 |" in text, text
    print("TensorBoard:", len(rows), "tags,", sum(map(len, rows.values())), "values of", directory.name)


def mlflow(directory, rows):
    client = MlflowClient(tracking_uri=directory.absolute().as_uri())
    experiment = client.get_experiment_by_name("Default")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.end_time >= run.info.start_time, run.info
    assert run.info.run_name and run.data.tags["mlflow.runName"] == run.info.run_name, run.data.tags
    assert run.data.params["training.max_steps"] == "12" and run.data.params["template"] == "cot-starter", run.data.params
    assert run.data.tags["mlflow.user"] == run.data.params["metadata.owner"], run.data.tags
    metadata = json.loads((ARTIFACTS / "run_metadata.json").read_text())
    assert run.data.tags["codex.config_digest"] == metadata["config_digest"], run.data.tags
    assert sorted(run.data.metrics) == sorted(rows), run.data.metrics
    for key, expected in rows.items():
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        assert found == [(row["step"], row["value"]) for row in expected], (key, found)
    print("MLflow:", len(rows), "metrics and", len(run.data.params), "parameters of", directory)


def wandb(directory, rows):
    (run,) = directory.iterdir()
    # The program beside this Python, which reads nothing of the network.
    program = pathlib.Path(sys.executable).with_name("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}

    def told(*arguments):
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr

    summary = json.loads(told("leet", "inspect", "--summary", "--json", run))
    assert summary["config"]["training.max_steps"] == 12, summary
    assert {key: summary["summary"][key] for key in rows} == {key: found[-1]["value"] for key, found in rows.items()}, summary
    assert "exit code 0" in told("leet", "inspect", "--summary", run)
    history = {}
    for line in told("leet", "inspect", "--json", run).splitlines():
        record = json.loads(line)
        if record["type"] == "history":
            items = record["history"]["item"]
            for key in rows.keys() & items.keys():
                history.setdefault(key, []).append((items["_step"], items[key]))
    assert history == {key: [(row["step"], row["value"]) for row in found] for key, found in rows.items()}, history
    assert "Would sync 1 run" in told("sync", "--dry-run", run)
    print("W&B:", len(rows), "keys of", run.name)


def table(rows):
    with open(ARTIFACTS / "metrics.csv", newline="") as file:
        found = [(line["split"], line["metric"], int(line["step"]), float(line["value"])) for line in csv.DictReader(file)]
    expected = [(row["split"], row["metric"], row["step"], row["value"]) for rows in rows.values() for row in rows]
    assert sorted(found) == sorted(expected)
    print("CSV:", len(found), "lines")


def main():
    rows = series()
    assert {"train/loss", "val/loss", "train/learning_rate"} <= set(rows), list(rows)
    assert len(list((ARTIFACTS / "tensorboard").iterdir())) > 1, "the run was not resumed"
    table(rows)
    tensorboard(ARTIFACTS / "tensorboard", rows)
    tensorboard(EXPORTED / "tensorboard", rows)
    mlflow(RUN / "mlruns", rows)
    mlflow(EXPORTED / "mlruns", rows)
    wandb(ARTIFACTS / "wandb", rows)
    wandb(EXPORTED / "wandb", rows)


main()
