"""Runs the steps of train_speed.rs in PyTorch, and compares both. `make bench-train` runs it.

    train_speed.py one SHAPE eager|compile fp32|bf16 STEPS THREADS   one JSON object, as train_speed prints it
    train_speed.py peak THREADS                                      how fast large products are
    train_speed.py compare PROGRAM ROUNDS                            tables, from interleaved runs of both
    train_speed.py products PROGRAM ROUNDS                           the share of the processor's speed in bf16 that training reaches
    train_speed.py sizes PROGRAM OUTPUT.svg                          what a step costs from 1M to 100M parameters
"""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time

begun = time.perf_counter()

# Seconds of untimed steps before the timed ones, as in train_speed.rs.
WARM_UP = 3

# Layers, width, heads, inner width, vocabulary, tokens per sequence, sequences per batch, as in train_speed.rs.
SHAPES = {
    "tiny": [2, 64, 4, 192, 98, 64, 64],
    "demo": [4, 64, 4, 192, 98, 32, 64],
    "0.8M": [4, 128, 4, 384, 98, 64, 64],
    "1M": [4, 128, 2, 512, 512, 256, 8],
    "4M": [5, 256, 4, 704, 1024, 256, 8],
    "12M": [6, 384, 6, 1024, 4096, 256, 8],
    "36M": [9, 576, 9, 1536, 4096, 256, 8],
    "100M": [12, 832, 13, 2240, 8192, 256, 8],
}


def one(name, mode, dtype, steps, threads):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    layers, width, heads, inner, vocabulary, tokens, sequences = SHAPES[name]
    head = width // heads

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_norm, self.inner_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
            linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
            self.qkv, self.output = linear(width, 3 * width), linear(width, width)
            self.gate_up, self.down = linear(width, 2 * inner), linear(inner, width)

        def forward(self, x, cos, sin):
            split = lambda y: y.view(sequences, tokens, heads, head).transpose(1, 2)
            q, k, v = map(split, self.qkv(self.input_norm(x)).chunk(3, -1))
            turn = lambda y: y * cos + torch.cat([-y[..., head // 2 :], y[..., : head // 2]], -1) * sin
            q, k = turn(q).to(v.dtype), turn(k).to(v.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.output(mixed.transpose(1, 2).reshape(sequences, tokens, width))
            gate, up = self.gate_up(self.inner_norm(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.RMSNorm(width, eps=1e-5)
            angles = torch.arange(tokens)[:, None] * 10000.0 ** (-torch.arange(head // 2) / (head // 2))
            self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
            self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))
            for weight in self.parameters():
                if weight.dim() > 1:
                    nn.init.normal_(weight, std=width**-0.5)

        def forward(self, ids, targets):
            x = self.embedding(ids)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            logits = F.linear(self.norm(x), self.embedding.weight)
            return F.cross_entropy(logits.view(-1, vocabulary).float(), targets.reshape(-1))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    call = torch.compile(model) if mode == "compile" else model
    times, processor, first, step = [], [], 0.0, 0
    while len(times) < steps:
        warm = step >= 2 and time.perf_counter() - begun >= WARM_UP
        ids = torch.randint(0, vocabulary, (sequences, tokens + 1))
        start, used = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = call(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        end = time.perf_counter()
        if step == 0:
            first = end - begun
        if warm:
            times.append(end - start)
            processor.append(time.process_time() - used)
        step += 1
    print(json.dumps({
        "tokens_per_second": tokens * sequences / statistics.median(times),
        "step_seconds": statistics.median(times),
        "fastest_seconds": min(times),
        "processor_seconds": statistics.mean(processor),
        "first_step_seconds": first,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "torch": torch.__version__,
    }))


def peak(threads):
    """Returns the GFLOP/s of the fastest of several large products, in both precisions."""
    import torch

    torch.set_num_threads(threads)
    speeds = {}
    for name, dtype in [("gflops", torch.float32), ("bf16_gflops", torch.bfloat16)]:
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        speeds[name] = 2 * 2048**3 / min(times) / 1e9
    print(json.dumps(speeds))


def run(command):
    environment = {**os.environ, "OMP_NUM_THREADS": command[-1] if command[-1].isdigit() else "2"}
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def torch_run(name, mode, dtype, steps, threads):
    return run([sys.executable, __file__, "one", name, mode, dtype, str(steps), str(threads)])


def compare(program, rounds):
    """Runs every contender once per round, so that other load affects all of them."""
    print(f"load before: {os.getloadavg()[0]:.1f}")
    for name, steps in [("12M", 5), ("0.8M", 20)]:
        contenders = {
            "codex fp32": lambda: run([program, name, "fp32", str(steps), "2"]),
            "codex bf16": lambda: run([program, name, "bf16", str(steps), "2"]),
            "codex fp32, 1 thread": lambda: run([program, name, "fp32", str(steps), "1"]),
            "codex bf16, 1 thread": lambda: run([program, name, "bf16", str(steps), "1"]),
            "PyTorch eager fp32": lambda: torch_run(name, "eager", "fp32", steps, 2),
            "PyTorch compile fp32": lambda: torch_run(name, "compile", "fp32", steps, 2),
            "PyTorch eager, autocast bf16": lambda: torch_run(name, "eager", "bf16", steps, 2),
            "PyTorch compile, autocast bf16": lambda: torch_run(name, "compile", "bf16", steps, 2),
        }
        results, peaks = {key: [] for key in contenders}, []
        for _ in range(rounds):
            peaks.append({**run([sys.executable, __file__, "peak", "2"]), "gemm": run([program, "peak", "2"])["gflops"]})
            for key, contender in contenders.items():
                results[key].append(contender())
        middle = lambda rows, field: statistics.median(row[field] for row in rows)
        base = middle(results["PyTorch eager fp32"], "step_seconds")
        used = middle(results["PyTorch eager fp32"], "processor_seconds")
        print(f"\n### {name}: {steps} steps, {rounds} rounds, medians\n")
        print(
            f"Large products on two threads, GFLOP/s: gemm f32 {middle(peaks, 'gemm'):.0f}, PyTorch f32 "
            f"{middle(peaks, 'gflops'):.0f}, PyTorch bf16 {middle(peaks, 'bf16_gflops'):.0f}\n"
        )
        print("| | tokens/s | × eager fp32 | processor time of a step, s | × eager fp32 | GFLOP/s | peak memory, MB | first step, s | accumulate, % | clip, % | update, % |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for key, rows in results.items():
            share = lambda field: f"{100 * middle(rows, field):.1f}" if field in rows[0] else ""
            flops = f"{middle(rows, 'gflops'):.0f}" if "gflops" in rows[0] else ""
            print(
                f"| {key} | {middle(rows, 'tokens_per_second'):.0f} | {base / middle(rows, 'step_seconds'):.2f} | "
                f"{middle(rows, 'processor_seconds'):.3f} | {used / middle(rows, 'processor_seconds'):.2f} | {flops} | {middle(rows, 'peak_mb'):.0f} | "
                f"{middle(rows, 'first_step_seconds'):.2f} | "
                f"{share('accumulation_cost')} | {share('clip_share')} | {share('update_share')} |"
            )
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


def products(program, rounds):
    """Compares the speed of training in bf16 with that of PyTorch's large products, measured right before it."""
    print(f"load before: {os.getloadavg()[0]:.1f}")
    results = {name: [] for name in ["12M", "100M"]}
    for _ in range(rounds):
        for name, rows in results.items():
            peak = run([sys.executable, __file__, "peak", "2"])["bf16_gflops"]
            row = run([program, name, "bf16", "3", "2"])
            rows.append({**row, "peak": peak, "share": row["gflops"] / peak})
    print("\n| Parameters | Code path | Training, GFLOP/s | Large products of the kernels | of PyTorch | Training, share of the latter |")
    print("|---|---|---|---|---|---|")
    for rows in results.values():
        middle = lambda field: statistics.median(row[field] for row in rows)
        print(
            f"| {rows[0]['parameters'] / 1e6:.1f}M | `{rows[0]['path']}` | {middle('gflops'):.0f} | {middle('peak_gflops'):.0f} | "
            f"{middle('peak'):.0f} | {100 * middle('share'):.0f} % |"
        )
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


def sizes(program, output):
    """Draws the seconds of a step over the number of parameters, on logarithmic axes."""
    names = ["1M", "4M", "12M", "36M", "100M"]
    lines = {}
    for dtype in ["fp32", "bf16"]:
        rows = [run([program, name, dtype, "3", "2"]) for name in names]
        lines[dtype] = [(row["parameters"], row["fastest_seconds"]) for row in rows]
        for row in rows:
            print(f"{dtype} {row['shape']}: {row['parameters']} parameters, {row['fastest_seconds']:.4f} s a step, "
                  f"{1e9 * row['fastest_seconds'] / row['parameters']:.1f} ns a parameter, {row['peak_mb']:.0f} MB")
    points = [point for line in lines.values() for point in line]
    low = [math.log10(min(point[axis] for point in points)) - 0.2 for axis in (0, 1)]
    high = [math.log10(max(point[axis] for point in points)) + 0.2 for axis in (0, 1)]
    place = lambda point, axis, size: 60 + (math.log10(point[axis]) - low[axis]) / (high[axis] - low[axis]) * size
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="560" height="380" font-family="sans-serif" font-size="12">',
             '<rect width="560" height="380" fill="white"/>',
             '<text x="280" y="370" text-anchor="middle">parameters</text>',
             '<text x="14" y="180" transform="rotate(-90 14 180)" text-anchor="middle">seconds a step (8 × 256 tokens)</text>']
    for color, (dtype, line) in zip(["#1f77b4", "#d62728"], lines.items()):
        path = " ".join(f"{place(point, 0, 460):.1f},{380 - place(point, 1, 290):.1f}" for point in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for point in line:
            x, y = place(point, 0, 460), 380 - place(point, 1, 290)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
            parts.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{point[1]:.3g}</text>')
            if dtype == "fp32":
                parts.append(f'<text x="{x:.1f}" y="345" text-anchor="middle">{point[0] / 1e6:.1f}M</text>')
        x, y = place(line[-1], 0, 460) + 8, 380 - place(line[-1], 1, 290)
        parts.append(f'<text x="{x:.1f}" y="{y + 12:.1f}" fill="{color}">{dtype}</text>')
    with open(output, "w", encoding="utf-8") as file:
        file.write("\n".join(parts + ["</svg>"]) + "\n")


match sys.argv[1:]:
    case ["one", name, mode, dtype, steps, threads]:
        one(name, mode, dtype, int(steps), int(threads))
    case ["peak", threads]:
        peak(int(threads))
    case ["compare", program, rounds]:
        compare(program, int(rounds))
    case ["products", program, rounds]:
        products(program, int(rounds))
    case ["sizes", program, output]:
        sizes(program, output)
    case _:
        sys.exit(__doc__)
