"""Exchanges models with transformers and adapters with PEFT, both unchanged, for each family that LoRA or full training supports. Prints
what it compared; an assertion ends it with an error.

    python transformers_models.py CODEX

- What transformers saves is served here with its log-probabilities.
- What `codex train` writes is loaded by transformers, with the log-probabilities of `codex serve`.
- The adapter that `codex train` writes beside a base has, in PEFT, the logits of the merged model that it writes.
- An adapter that PEFT saves is merged by `codex merge` into a model with PEFT's logits.

This Python has torch, transformers and peft.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")

import peft
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM

CODEX = str(pathlib.Path(sys.argv[1]).resolve())
SECONDS = 300
# Of logits and log-probabilities in fp32.
NEAR = 1e-4
PROMPTS = ["What is 3 + 4?", "What is 12 + 1? It is", "1"]
RECORDS = [{"prompt": f"What is {i} + {j}?", "response": f"{i} + {j} = {i + j}."} for i in range(8) for j in range(4)]
TOKENS = 16

SHAPE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    initializer_range=0.2, bos_token_id=None, eos_token_id=0, pad_token_id=1,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32,
)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.0)
FAMILIES = {
    "llama-llama3": lambda size: transformers.LlamaConfig(vocab_size=size, **SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama-linear": lambda size: transformers.LlamaConfig(vocab_size=size, **SHAPE, tie_word_embeddings=False, rope_parameters=LINEAR),
    "mistral": lambda size: transformers.MistralConfig(vocab_size=size, **SHAPE, tie_word_embeddings=False, sliding_window=None),
    "qwen2": lambda size: transformers.Qwen2Config(vocab_size=size, **SHAPE, tie_word_embeddings=True),
    "qwen3": lambda size: transformers.Qwen3Config(vocab_size=size, **SHAPE, head_dim=32, tie_word_embeddings=True),
    "gpt2": lambda size: transformers.GPT2Config(
        vocab_size=size, n_embd=64, n_head=4, n_layer=2, n_positions=128, bos_token_id=0, eos_token_id=0, initializer_range=0.2
    ),
}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, (command, done.stdout[-4000:], done.stderr[-4000:])
    return done.stdout


def write_base(place, config):
    """Writes a random model with a byte-level tokenizer, as transformers saves them."""
    model = AutoModelForCausalLM.from_config(config(tokenizer().vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases of 0 and norms of 1 would show nothing.
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(place)
    tokenizer().save_pretrained(place)


def tokenizer():
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([record["prompt"] + record["response"] for record in RECORDS], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|pad|>")


@contextlib.contextmanager
def served(model):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [CODEX, "serve", str(model), "--unsigned", "--device", "cpu", "--listen", address], stdout=log, stderr=log
        )
        try:
            for _ in range(10 * SECONDS):
                assert server.poll() is None, (log.seek(0), log.read()[-4000:])
                with contextlib.suppress(OSError):
                    if urllib.request.urlopen(f"http://{address}/ready").status == 200:
                        break
                time.sleep(0.1)
            else:
                raise AssertionError(f"the server of {model} is not ready after {SECONDS} s")
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait(60)


def loaded(place):
    """Loads a model in fp32 and checks that no weight is missing or left over."""
    model, report = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def serves_the_numbers_of_transformers(place):
    """Compares greedy tokens and their log-probabilities. Returns the number of compared tokens."""
    model, words, compared = loaded(place), tokenizer(), 0
    with served(place) as url:
        for prompt in PROMPTS:
            body = {"model": "codex", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
            request = urllib.request.Request(
                f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            choice = json.load(urllib.request.urlopen(request))["choices"][0]
            found = choice["logprobs"]["token_logprobs"]
            ids = words(prompt).input_ids
            begun, sure = len(ids), True
            for at, probability in enumerate(found):
                scores = torch.log_softmax(logits(model, ids)[-1].double(), -1)
                best, next_best = scores.topk(2)
                assert abs(best[0] - probability) < NEAR, (place, prompt, at, best[0].item(), probability)
                # Where two tokens are nearly as probable, either may come, and the texts part.
                if best[0] - best[1] < 10 * NEAR:
                    sure = False
                    break
                ids.append(next_best[0].item())
                compared += 1
            if sure and choice["finish_reason"] == "length":
                text = words.decode(ids[begun:], skip_special_tokens=True)
                assert text == choice["text"], (place, prompt, choice["text"], text)
    assert compared > 2 * len(PROMPTS), f"{compared} tokens show little"
    return compared


def train(base, data, place, method):
    settings = [
        f"training.method={method}", "training.dtype=fp32", "training.device=cpu", "training.max_steps=6", "training.batch_size=4",
        "training.warmup_steps=1", "training.learning_rate=0.002", "training.checkpoint_every=6",
    ]
    run(
        CODEX, "train", "--template", "lora", "--base", str(base), "--data", f"sums={data}", "--output", str(place),
        *(argument for setting in settings for argument in ("--set", setting)),
    )


def assert_same(place, one, other):
    greatest = 0.0
    for prompt in PROMPTS:
        ids = tokenizer()(prompt).input_ids
        difference = (logits(one, ids) - logits(other, ids)).abs().max().item()
        assert difference < NEAR, (place, prompt, difference)
        greatest = max(greatest, difference)
    return greatest


def assert_differs(place, one, other):
    ids = tokenizer()(PROMPTS[0]).input_ids
    difference = (logits(one, ids) - logits(other, ids)).abs().max().item()
    assert difference > 100 * NEAR, f"{place}: the adapter changes logits by {difference}, which shows little"


def our_adapter(place, base):
    """PEFT with the adapter of a run computes what the run's merged model computes."""
    merged = loaded(place / "model")
    adapted = peft.PeftModel.from_pretrained(loaded(base), str(place / "artifacts/adapter")).eval()
    assert_differs(place, merged, loaded(base))
    return assert_same(place, adapted, merged)


def their_adapter(place, base, targets):
    """`codex merge` with an adapter of PEFT writes a model that computes what PEFT computes."""
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(loaded(base), config).eval()
    adapted.save_pretrained(place / "adapter")
    run(CODEX, "merge", "--base", str(base), "--adapter", str(place / "adapter"), "--output", str(place / "merged"))
    merged = loaded(place / "merged")
    assert_differs(place, merged, loaded(base))
    return assert_same(place, adapted, merged)


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data = folder / "sums.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        for name, config in FAMILIES.items():
            torch.manual_seed(1)
            place = folder / name
            base = place / "base"
            write_base(base, config)
            print(f"{name}: the base has the log-probabilities of transformers,", serves_the_numbers_of_transformers(base), "tokens")
            train(base, data, place / "full", "sft")
            assert_differs(place, loaded(place / "full/model"), loaded(base))
            tokens = serves_the_numbers_of_transformers(place / "full/model")
            print(f"{name}: transformers loads the trained model with the same log-probabilities, {tokens} tokens")
            # LoRA here needs Llama's projections; PEFT's adapters of GPT-2 are merged, too.
            if name != "gpt2":
                train(base, data, place / "lora", "lora")
                print(f"{name}: our adapter in PEFT, greatest difference of logits:", our_adapter(place / "lora", base))
            targets = ["c_attn", "c_fc", "c_proj"] if name == "gpt2" else "all-linear"
            (place / "peft").mkdir()
            print(f"{name}: PEFT's adapter merged here, greatest difference of logits:", their_adapter(place / "peft", base, targets))


main()
