"""Times LoRA, decoding, prefill and evaluation of SmolLM2-135M beside PEFT and transformers. `make bench-real` runs it.

    real.py compare PROGRAMS MODEL PROBLEMS COUNT ROUNDS   tables, from interleaved runs; PROGRAMS is cargo's folder of programs
    real.py lora MODEL fp32|bf16 STEPS                     LoRA steps with PEFT, as lora_speed.rs takes them
    real.py generate MODEL PROBLEMS COUNT                  greedy answers with transformers, 8 at a time

Without torch, transformers and peft, `compare` times this project alone and says so.
"""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

# As in lora_speed.rs.
SEQUENCES, TOKENS, PROMPT, WARM_UP = 16, 77, 37, 2
THREADS = 2


def processor():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3


def load(model):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    return torch, AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def lora(model, dtype, steps):
    torch, base = load(model)
    from peft import LoraConfig, get_peft_model

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=every, task_type="CAUSAL_LM"))
    tuned.train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    times, used, losses = [], 0.0, []
    for step in range(WARM_UP + steps):
        mixed = [[((s * TOKENS + at + step * 7919) * 2654435761) % 2**32 for at in range(TOKENS)] for s in range(SEQUENCES)]
        ids = torch.tensor([[(id >> 7) % 49152 for id in row] for row in mixed])
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        before, start = processor(), time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = tuned(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step >= WARM_UP:
            times.append(time.perf_counter() - start)
            used += processor() - before
    tokens = SEQUENCES * (TOKENS - 1)
    print(json.dumps({
        "tokens_per_second": tokens / statistics.median(times),
        "processor_ms_per_token": 1e3 * used / steps / tokens,
        "peak_mb": peak_mb(),
        "loss": losses,
    }))


def generate(model, problems, count):
    torch, base = load(model)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    with open(problems, encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file][:count]
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    before, start = processor(), time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(chats), 8):
            batch = tokenizer(chats[at : at + 8], return_tensors="pt", padding=True, add_special_tokens=False)
            base.generate(**batch, max_new_tokens=160, do_sample=False)
    print(json.dumps({
        "problems_per_second": len(chats) / (time.perf_counter() - start),
        "processor_s_per_problem": (processor() - before) / len(chats),
        "peak_mb": peak_mb(),
    }))


def run(*command):
    """Returns the JSON object on the last line of a program's output."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "RAYON_NUM_THREADS": str(THREADS)}
    command = [str(part) for part in command]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def own(*arguments):
    return run(sys.executable, __file__, *arguments)


def evaluate(programs, model, count):
    """Times `codex evaluate`, loading included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [f"{programs}/codex", "evaluate", "--preset", "gym-chain-sum", "--model", model, "--output", f"{folder}/out"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "--set", f"evaluation.limit={count}"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"problems_per_second": count / seconds, "processor_s_per_problem": used / count}


def table(results, columns):
    print("\n| | " + " | ".join(title for title, *_ in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name, rows in results.items():
        cells = []
        for _, field, digits in columns:
            values = [row[field] for row in rows if field in row]
            cells.append(f"{statistics.median(values):,.{digits}f}" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def repeat(contenders, rounds):
    """Runs every contender once per round, so that other load affects all of them."""
    results = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            results[name].append(contender())
    return results


def compare(programs, model, problems, count, rounds):
    peers = all(importlib.util.find_spec(name) for name in ["torch", "transformers", "peft"])
    print(f"load before: {os.getloadavg()[0]:.1f}")
    if not peers:
        print("torch, transformers and peft are not installed: this project alone.")
    examples = f"{programs}/examples"
    contenders = {f"codex {dtype}": lambda dtype=dtype: run(f"{examples}/lora_speed", dtype, 3) for dtype in ["bf16", "fp32"]}
    if peers:
        contenders |= {f"PEFT {dtype}": lambda dtype=dtype: own("lora", model, dtype, 2) for dtype in ["bf16", "fp32"]}
    print("\nLoRA, rank 16, seven projections, 16 sequences of 76 tokens")
    columns = [("tokens/s", "tokens_per_second", 0), ("processor ms a token", "processor_ms_per_token", 2), ("peak MB", "peak_mb", 0)]
    table(repeat(contenders, rounds), columns)
    contenders = {f"codex {dtype}": lambda dtype=dtype: run(f"{examples}/decode_speed", model, dtype) for dtype in ["bf16", "fp32"]}
    print("\nPrefill of 512 tokens, and decoding after 64, tokens/s")
    columns = [
        ("prefill", "prefill_tokens_per_second", 0),
        ("batch 1", "decode_1_tokens_per_second", 1),
        ("batch 8", "decode_8_tokens_per_second", 1),
        ("held MB", "held_mb", 0),
    ]
    table(repeat(contenders, rounds), columns)
    contenders = {"codex evaluate": lambda: evaluate(programs, model, count)}
    if peers:
        contenders["transformers generate, batch 8"] = lambda: own("generate", model, problems, count)
    print(f"\nAnswers to {count} problems of gym-chain-sum, at most 160 tokens each")
    columns = [("problems/s", "problems_per_second", 2), ("processor s a problem", "processor_s_per_problem", 2)]
    table(repeat(contenders, rounds), columns)
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


match sys.argv[1:]:
    case ["compare", programs, model, problems, count, rounds]:
        compare(programs, model, problems, int(count), int(rounds))
    case ["lora", model, dtype, steps]:
        lora(model, dtype, int(steps))
    case ["generate", model, problems, count]:
        generate(model, problems, int(count))
    case _:
        sys.exit(__doc__)
