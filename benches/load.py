#!/usr/bin/env python3
"""How much memory a whole process holds when it loads a large model: a table for docs/benchmarks.md. `make bench-load` runs it.

    load.py CODEX MODEL GIGABYTES    CODEX is the program; tokenizer and configuration are those of MODEL

The model has the shape of Llama 3.2 3B with as many layers as make GIGABYTES, in files of 2 GB. Its weights are one block of random numbers,
again and again: memory depends on their number and on whether they fit into eight bits, not on what they are. It is written twice, with numbers
that need 16 bits and with numbers that fit into eight, one after the other, in TMPDIR.
"""

import array
import contextlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HIDDEN, INNER, HEADS, SHARED_HEADS, WIDTH = 3072, 8192, 24, 8, 128
SHARD = 2_000_000_000
# Numbers of the block that is repeated. No row has a length that divides it.
BLOCK = (1 << 20) + 7
# Memory and disk that must be free, as multiples of the model.
MEMORY, DISK = 1.25, 1.05
# The aim of docs/benchmarks.md.
AIM = 1.1
# Seconds between two looks at a process, and until a server must be ready.
LOOK, READY = 0.02, 900


def tensors_of(layers, vocabulary):
    """Yields the names and shapes of the tensors."""
    yield "model.embed_tokens.weight", [vocabulary, HIDDEN]
    for layer in range(layers):
        for part, shape in [
            ("input_layernorm", [HIDDEN]),
            ("self_attn.q_proj", [HEADS * WIDTH, HIDDEN]),
            ("self_attn.k_proj", [SHARED_HEADS * WIDTH, HIDDEN]),
            ("self_attn.v_proj", [SHARED_HEADS * WIDTH, HIDDEN]),
            ("self_attn.o_proj", [HIDDEN, HEADS * WIDTH]),
            ("post_attention_layernorm", [HIDDEN]),
            ("mlp.gate_proj", [INNER, HIDDEN]),
            ("mlp.up_proj", [INNER, HIDDEN]),
            ("mlp.down_proj", [HIDDEN, INNER]),
        ]:
            yield f"model.layers.{layer}.{part}.weight", shape
    yield "model.norm.weight", [HIDDEN]


def bytes_of(shape):
    """Returns the bytes of a tensor in bf16."""
    size = 2
    for length in shape:
        size *= length
    return size


def layers_for(size, vocabulary):
    """Returns how many layers make a model of about so many bytes."""
    total = lambda layers: sum(bytes_of(shape) for _, shape in tensors_of(layers, vocabulary))
    return max(1, round((size - total(0)) / (total(1) - total(0))))


def block(eight):
    """Returns finite bf16 numbers of the size that weights have: those that fit into eight bits, or those that do not."""
    draw = random.Random(1)
    if eight:
        # Whole numbers of six bits in units of 2^-12 are exact in bf16, which is the upper half of a float.
        numbers = (struct.unpack("<I", struct.pack("<f", draw.randint(-63, 63) / 4096))[0] >> 16 for _ in range(BLOCK))
    else:
        # A sign, an exponent from 2^-10 to 2^-6, and all seven bits of the fraction.
        numbers = (draw.getrandbits(1) << 15 | (127 - draw.randint(6, 10)) << 7 | draw.getrandbits(7) for _ in range(BLOCK))
    return little(array.array("H", numbers))


def little(numbers):
    """Returns the bytes of numbers, the lowest first."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def shards_of(tensors):
    """Divides tensors among files."""
    shards, size = [[]], 0
    for name, shape in tensors:
        if shards[-1] and size + bytes_of(shape) > SHARD:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += bytes_of(shape)
    return shards


def write_model(source, target, layers, eight):
    """Writes a model, and returns the bytes of its directory."""
    target.mkdir()
    for path in source.iterdir():
        if path.name != "config.json" and not path.name.endswith(".safetensors"):
            shutil.copy(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS}
    config |= {"num_key_value_heads": SHARED_HEADS, "head_dim": WIDTH, "tie_word_embeddings": True}
    (target / "config.json").write_text(json.dumps(config))
    numbers, ones = block(eight), little(array.array("H", [0x3F80] * HIDDEN))
    shards = shards_of(tensors_of(layers, config["vocab_size"]))
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end = {}, 0
        for tensor, shape in shard:
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes_of(shape)]}
            end += bytes_of(shape)
            index[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (target / name).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, shape in shard:
                repeated, rest = (ones if len(shape) == 1 else numbers), bytes_of(shape)
                while rest > 0:
                    rest -= out.write(memoryview(repeated)[:rest])
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(path.stat().st_size for path in target.iterdir())


class Peak:
    """The most memory of a process: anonymous, and of mapped files. The kernel counts their sum; each alone is looked at often."""

    def __init__(self, process):
        self.process, self.anonymous, self.mapped, self.whole, self.status = process, 0, 0, 0, None

    def look(self):
        """Looks once. Returns whether the process still runs."""
        with contextlib.suppress(OSError):
            found = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
            number = lambda name: int(found[name].split()[0]) * 1024 if name in found else 0
            self.anonymous = max(self.anonymous, number("RssAnon"))
            self.mapped = max(self.mapped, number("RssFile"))
            self.whole = max(self.whole, number("VmHWM"))
        time.sleep(LOOK)
        if self.status is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid != 0:
                self.status = self.process.returncode = os.waitstatus_to_exitcode(status)
                self.whole = max(self.whole, usage.ru_maxrss * 1024)
        return self.status is None


def start(command, log):
    return subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)


def failed(command, log):
    log.seek(0)
    sys.exit(f"{command[0]} {command[1]} failed: {log.read().decode(errors='replace')[-1000:]}")


def generate(codex, model):
    """Generates one token. Returns the peak and the seconds."""
    command = [codex, "generate", model, "--device", "cpu", "--max-tokens", 1, "--prompt", "The capital of France is"]
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        peak = Peak(start(command, log))
        while peak.look():
            pass
        if peak.status != 0:
            failed(command, log)
        return peak, time.monotonic() - begun


def serve(codex, model):
    """Serves until the server is ready. Returns the peak and the seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [codex, "serve", model, "--unsigned", "--device", "cpu", "--listen", f"127.0.0.1:{port}"]
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        peak = Peak(start(command, log))
        try:
            while not is_ready(port):
                if not peak.look() or time.monotonic() - begun > READY:
                    failed(command, log)
            seconds = time.monotonic() - begun
            peak.look()
        finally:
            if peak.status is None:
                peak.process.terminate()
                while peak.look():
                    pass
        return peak, seconds


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def available():
    """Returns the bytes of memory that the kernel can give."""
    found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) * 1024


def main():
    codex, source, size = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) * 1e9
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    layers = layers_for(size, vocabulary)
    size = sum(bytes_of(shape) for _, shape in tensors_of(layers, vocabulary))
    with tempfile.TemporaryDirectory() as work:
        memory, disk = available(), shutil.disk_usage(work).free
        wanted = f"A model of {size / 1e9:.2f} GB takes {MEMORY * size / 1e9:.1f} GB of memory and {DISK * size / 1e9:.1f} GB of disk in {work}"
        if memory < MEMORY * size or disk < DISK * size:
            sys.exit(f"{wanted}, but {memory / 1e9:.1f} GB and {disk / 1e9:.1f} GB are free: name fewer GIGABYTES, or another TMPDIR.")
        print(f"{wanted}; {memory / 1e9:.1f} GB and {disk / 1e9:.1f} GB are free.\n", flush=True)
        print("| Weights | Program | On disk | Peak memory | × weights in memory | Anonymous | Mapped files | Time |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        missed = False
        for eight in (False, True):
            model = Path(work) / "model"
            stored = write_model(source, model, layers, eight)
            # A decoder holds a number of eight bits in one byte, and one byte more for each 32 of them.
            held = stored / 2 * (1 + 1 / 32) if eight else stored
            for name, program in (("generate", generate), ("serve", serve)):
                peak, seconds = program(codex, model)
                times = peak.whole / held
                missed |= times > AIM
                kind = "bf16 that fits into eight bits" if eight else "bf16"
                numbers = [peak.whole, peak.anonymous, peak.mapped]
                whole, anonymous, mapped = (f"{number / 1e6:,.0f} MB" for number in numbers)
                print(f"| {kind} | `codex {name}` | {stored / 1e6:,.0f} MB | {whole} | {times:.3f} | {anonymous} | {mapped} | {seconds:.0f} s |", flush=True)
            shutil.rmtree(model)
        print(f"\nAim: at most {AIM} times the weights in memory: {'missed' if missed else 'met'}.")


main()
