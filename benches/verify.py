#!/usr/bin/env python3
"""What verification costs: a table for docs/benchmarks.md. Compares with `model_signing` on the same directory.

Usage: benches/verify.py PROGRAMS MODEL MODEL_SIGNING ROUNDS. The model of 1 GB is MODEL with its layers repeated, in four files.
"""

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = 1_000_000_000
SHARDS = 4


def grow(source, target):
    """Writes a model with as many layers as make SIZE bytes, each a copy of one of the source's."""
    target.mkdir()
    for path in source.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            shutil.copy(path, target / path.name)
    with (source / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length

        def bytes_of(entry):
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            return file.read(end - begin)

        layers, rest = {}, {}
        for name, entry in header.items():
            if name.startswith("model.layers."):
                number, part = name.removeprefix("model.layers.").split(".", 1)
                layers.setdefault(int(number), {})[part] = entry
            else:
                rest[name] = entry
        size = lambda entries: sum(end - begin for begin, end in (entry["data_offsets"] for entry in entries))
        count = (SIZE - size(rest.values())) // size(layers[0].values())
        tensors = list(rest.items())
        tensors += [(f"model.layers.{layer}.{part}", entry) for layer in range(count) for part, entry in layers[layer % len(layers)].items()]
        names, per_shard = {}, -(-len(tensors) // SHARDS)
        for shard in range(SHARDS):
            name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
            part, offset, written = tensors[shard * per_shard : (shard + 1) * per_shard], 0, {}
            for tensor, entry in part:
                length = entry["data_offsets"][1] - entry["data_offsets"][0]
                written[tensor] = {**entry, "data_offsets": [offset, offset + length]}
                offset += length
                names[tensor] = name
            text = json.dumps(written).encode()
            text += b" " * (-len(text) % 8)
            with (target / name).open("wb") as out:
                out.write(struct.pack("<Q", len(text)) + text)
                for _, entry in part:
                    out.write(bytes_of(entry))
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
    return sum(path.stat().st_size for path in target.iterdir())


def timed(command, expected=0):
    """Returns the seconds of a command, which must end with this exit code, and the peak of its memory in MiB."""
    before = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != expected:
        sys.exit(f"{command[0]} failed")
    return time.monotonic() - before, usage.ru_maxrss / 1024


def main():
    programs, source, peer, rounds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        model = work / "model"
        size = grow(source, model)
        subprocess.run([programs / "examples/sign_directory", model, work / "signed"], check=True, stdout=subprocess.DEVNULL)
        oms, key = work / "signed/oms.json", work / "signed/key.pem"
        told = subprocess.run([programs / "examples/verify_speed", model, oms, key, str(rounds)], check=True, stdout=subprocess.PIPE)
        told = json.loads(told.stdout)
        subprocess.run([programs / "examples/sign_directory", source, work / "small"], check=True, stdout=subprocess.DEVNULL)
        small = sum(path.stat().st_size for path in source.iterdir())
        ours, theirs, memory, peer_memory, small_memory = [], [], [], [], []
        for _ in range(rounds):
            # Exit code 3: verified, with a key that no fingerprint pins.
            seconds, peak = timed([programs / "codex", "verify", model, "--bundle", oms, "--key", key], 3)
            ours.append(seconds)
            memory.append(peak)
            small_oms, small_key = work / "small/oms.json", work / "small/key.pem"
            small_memory.append(timed([programs / "codex", "verify", source, "--bundle", small_oms, "--key", small_key], 3)[1])
            seconds, peak = timed([peer, "verify", "key", model, "--signature", oms, "--public_key", key])
            theirs.append(seconds)
            peer_memory.append(peak)
    middle = statistics.median
    plain, verified, hashing = (middle(told[name]) for name in ("plain", "verified", "hashing"))
    plain_work, verified_work = (middle(told[name]) for name in ("plainWork", "verifiedWork"))
    written, hashed = (middle(told[name]) for name in ("written", "writtenHashed"))
    print(f"Model: {size / 1e9:.2f} GB in {SHARDS} files of weights; medians of {rounds} rounds.\n")
    print("| Figure | Measured |\n|---|---|")
    print(f"| Loading it without verification | {plain:.2f} s, {plain_work:.2f} s of processor time |")
    print(f"| Loading it while it is hashed, and verifying its signature | {verified:.2f} s ({100 * (verified / plain - 1):+.0f} %), {verified_work:.2f} s of processor time |")
    print(f"| Hashing it and verifying its signature alone | {hashing:.2f} s |")
    print(f"| `codex verify` | {middle(ours):.2f} s, {size / 1e9 / middle(ours):.1f} GB/s, peak {middle(memory):.0f} MiB |")
    print(f"| The same with a model of {small / 1e9:.2f} GB | peak {middle(small_memory):.0f} MiB |")
    print(f"| `model_signing verify` | {middle(theirs):.2f} s, {size / 1e9 / middle(theirs):.1f} GB/s, peak {middle(peer_memory):.0f} MiB |")
    print(f"| Writing it, and writing it while it is hashed | {written:.2f} s, {hashed:.2f} s ({100 * (hashed / written - 1):+.0f} %) |")
    print(f"| Signing five statements with a key, which is generated first | {1000 * told['signing']:.1f} ms |")


main()
