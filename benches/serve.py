"""Measures `codex serve` with a model, beside llama.cpp's server if there is one. `make bench-serve` runs it.

    serve.py CODEX MODEL ROUNDS [LLAMA_SERVER GGUF]    one table; CODEX is the program, LLAMA_SERVER that of llama.cpp

Requests are chats, which both servers put into the model's own chat template. Every server gets two threads. Times are of this machine, on
which the clients run, too: compare within a run.
"""

import contextlib
import http.client
import http.server
import json
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

SLOTS, TOKENS, THREADS = 8, 64, 2
# Requests that wait at 2 × capacity, and the seconds of that load.
QUEUE, OVERLOAD = 8, 600
PREFIX, IDLE = 400, 1_000
# Starts of a server, and the seconds between two looks whether it is ready.
STARTS, LOOK = 7, 0.002
# The first message of every chat, so that no server puts its own there.
SYSTEM = "Answer at length."


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def server(command, port):
    """Runs a server until it answers, and then until the end of the block. Gives its process."""
    with tempfile.TemporaryFile() as log, subprocess.Popen([*map(str, command)], stdout=log, stderr=log) as process:
        try:
            for _ in range(1200):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[0]} ended: {log.read().decode(errors='replace')[-500:]}")
                with contextlib.suppress(OSError):
                    if ask(port, "GET", "/v1/models")[0] == 200:
                        break
                time.sleep(0.1)
            else:
                sys.exit(f"{command[0]} did not answer within two minutes")
            yield process
        finally:
            process.terminate()
            process.wait(60)


def codex(program, model, port, *more):
    return server([program, "serve", model, "--unsigned", "--listen", f"127.0.0.1:{port}", "--slots", SLOTS, *more], port)


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def chat(prompt, tokens=TOKENS):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    return {"model": "codex", "messages": messages, "max_tokens": tokens, "temperature": 0}


def prompt_tokens(port):
    """Returns the length of a chat's prompt, which tells chat templates apart."""
    status, body = ask(port, "POST", "/v1/chat/completions", chat("How wide is the sea?", 1))
    if status != 200:
        sys.exit(f"a chat was not answered: {body.decode(errors='replace')[:500]}")
    return json.loads(body)["usage"]["prompt_tokens"]


def says(event):
    """Whether an event has text, of the answer or of the reasoning before it."""
    delta = event["choices"][0].get("delta", {}) if event.get("choices") else {}
    return bool(delta.get("content") or delta.get("reasoning_content"))


def generate(port, body):
    """Returns the status, the seconds to the first token and to the end, and the tokens of one streamed chat."""
    begun, first, tokens = time.perf_counter(), None, 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            response.read()
            return response.status, None, time.perf_counter() - begun, 0
        ended = False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                ended = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                return 500, first, time.perf_counter() - begun, 0
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if first is None and says(event):
                first = time.perf_counter() - begun
        whole = time.perf_counter() - begun
        return (200 if ended else 499), first or whole, whole, tokens
    finally:
        connection.close()


def words(count, seed):
    random.seed(seed)
    return " ".join(random.choice("sea lamp storm stone bird rope wind night keeper light".split()) for _ in range(count))


def closed(port, count, each):
    """`count` clients that each send `each` requests, one after the other. Returns tokens and requests a second."""
    results = []

    def client(number):
        for turn in range(each):
            results.append(generate(port, chat(f"{number}.{turn}: {words(20, number * 1000 + turn)}")))

    begun = time.perf_counter()
    clients = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    [client.start() for client in clients]
    [client.join() for client in clients]
    took = time.perf_counter() - begun
    if any(status != 200 for status, *_ in results):
        sys.exit(f"a request was not answered: {results}")
    return sum(tokens for *_, tokens in results) / took, len(results) / took


def opened(port, rate, count):
    """`count` requests at `rate` a second, whether or not earlier ones are answered. Returns what became of each."""
    results, threads, chance = [], [], random.Random(1)
    due = time.perf_counter()
    for number in range(count):
        due += chance.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        body = chat(f"{number}: {words(20, number)}")
        threads.append(threading.Thread(target=lambda body=body: results.append(generate(port, body))))
        threads[-1].start()
    [thread.join() for thread in threads]
    return results


def p95(values):
    values = sorted(values)
    return values[min(len(values) - 1, -(-95 * len(values) // 100) - 1)]


def throughput(contenders, rounds):
    """Closed and open loops for each server, in turns."""
    lengths = {}
    speeds, firsts, rates = ({name: [] for name in contenders} for _ in range(3))
    for _ in range(rounds):
        for name, start in contenders.items():
            port = free_port()
            with start(port):
                lengths[name] = prompt_tokens(port)
                if len(set(lengths.values())) > 1:
                    sys.exit(f"the servers have different chat templates: a prompt has {lengths} tokens")
                closed(port, 2, 1)
                speed, rate = closed(port, SLOTS, 4)
                speeds[name].append(speed)
                rates[name].append(rate)
        half = min(statistics.median(rate) for rate in rates.values()) / 2
        for name, start in contenders.items():
            port = free_port()
            with start(port):
                closed(port, 2, 1)
                firsts[name].append(p95([first for _, first, *_ in opened(port, half, 40)]))
    return ({name: statistics.median(values) for name, values in all.items()} for all in (speeds, rates, firsts))


def prefixes(program, model):
    """Returns the median milliseconds to the first token of prompts that miss and hit the prefix cache."""
    port, missed, hit = free_port(), [], []
    with codex(program, model, port):
        closed(port, 1, 1)
        for number in range(10):
            prompt = f"{number} {words(PREFIX, number)}"
            for times in (missed, hit):
                times.append(generate(port, chat(prompt, 1))[1])
    return statistics.median(missed) * 1e3, statistics.median(hit) * 1e3


def starts(program, model):
    """Returns the median seconds from the start of the process to the first /ready that says 200."""
    times = []
    for _ in range(STARTS):
        port = free_port()
        command = [program, "serve", model, "--unsigned", "--listen", f"127.0.0.1:{port}"]
        with tempfile.TemporaryFile() as log:
            begun = time.perf_counter()
            process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
            try:
                while not is_ready(port):
                    if process.poll() is not None or time.perf_counter() - begun > 120:
                        log.seek(0)
                        sys.exit(f"{program} was never ready: {log.read().decode(errors='replace')[-500:]}")
                    time.sleep(LOOK)
                times.append(time.perf_counter() - begun)
            finally:
                process.kill()
                process.wait(60)
    return statistics.median(times)


def is_ready(port):
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, "GET", "/ready")[0] == 200
    return False


@contextlib.contextmanager
def demo_model(program):
    """Trains the demo's model for two steps, which gives its size but not its answers."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["template=cot-starter", "training.max_steps=2", "training.warmup_steps=0"]
        command = [str(program), "train", *settings, "--output", folder + "/run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            sys.exit(f"the demo's model cannot be trained: {done.stderr[-500:]}")
        yield pathlib.Path(folder, "run", "model")


def resident_mb(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1.024e-3


def overload(program, model, rate):
    """Sends twice what the server answers, in ten parts. Returns for each part what became of its requests, and the memory after it."""
    port, parts, memory = free_port(), [], []
    with codex(program, model, port, "--queue", QUEUE) as process:
        closed(port, 2, 1)
        for _ in range(10):
            parts.append(opened(port, 2 * rate, int(2 * rate * OVERLOAD / 10)))
            memory.append(resident_mb(process))
    return parts, memory


def idle(program, model):
    """Returns the megabytes that idle connections add."""
    port = free_port()
    with codex(program, model, port) as process, contextlib.ExitStack() as open_connections:
        closed(port, SLOTS, 1)
        time.sleep(1)
        before = resident_mb(process)
        for _ in range(IDLE):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            open_connections.callback(connection.close)
            connection.request("GET", "/health")
            if connection.getresponse().read() is None:
                sys.exit("a connection was refused")
        time.sleep(2)
        return resident_mb(process) - before


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes copies and compares nothing: what copying costs the incumbent, without the work of the shadow."""

    def do_POST(self):
        self.server.taken += 1
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(202)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def copies(program, model, rate, rounds):
    """Returns the 95th percentiles of whole requests in milliseconds, twice without copies and once with copies of one in ten, and the
    copies taken. What the first two differ by is chance."""
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    sink.taken = 0
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    times = {"without": [], "with": [], "again without": []}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "mirror.json")
        target = {"uid": "sink", "url": f"http://127.0.0.1:{sink.server_port}", "samplePercent": 10}
        file.write_text(json.dumps({"shadows": [target]}))
        for _ in range(rounds):
            for name in times:
                port = free_port()
                with codex(program, model, port, *(["--mirror", file] if name == "with" else [])):
                    closed(port, 2, 1)
                    times[name] += [whole for _, _, whole, _ in opened(port, rate / 2, 60)]
    sink.shutdown()
    return [p95(values) * 1e3 for values in times.values()], sink.taken


def row(what, measured, mark, met):
    print(f"| {what} | {measured} | {mark}{'' if met is None else '' if met else ', **missed**'} |", flush=True)


def measure(program, model, rounds, llama=None):
    contenders = {"codex": lambda port: codex(program, model, port)}
    if llama:
        binary, gguf = llama
        command = [binary, "--model", gguf, "--parallel", SLOTS, "--ctx-size", SLOTS * 2048, "--threads", THREADS, "--jinja"]
        contenders["llama.cpp"] = lambda port: server([*command, "--host", "127.0.0.1", "--port", port], port)
    speeds, rates, firsts = throughput(contenders, rounds)
    print("\n| What | Measured | Mark |\n|---|---|---|")
    beside = "llama.cpp" in contenders
    shown = ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
    ratio = speeds["codex"] / speeds["llama.cpp"] if beside else None
    told = f"{shown} tokens/s" + (f": {ratio:.2f} ×" if beside else "")
    row(f"{SLOTS} concurrent chats of at most {TOKENS} tokens", told, "≥ 1.0 × llama.cpp's server", ratio and ratio >= 1)
    shown = ", ".join(f"{name} {first * 1e3:.0f} ms" for name, first in firsts.items())
    ratio = firsts["codex"] / firsts["llama.cpp"] if beside else None
    told = shown + (f": {ratio:.2f} ×" if beside else "")
    row("First token at half load, p95", told, "≤ 1.0 × llama.cpp's server", ratio and ratio <= 1)
    missed, hit = prefixes(program, model)
    told = f"{missed:.0f} ms missed, {hit:.0f} ms hit: {hit / missed:.2f} ×"
    row(f"First token of a prompt of {PREFIX} words that hits the prefix cache", told, "≤ 0.2 × of a miss", hit <= 0.2 * missed)
    with demo_model(program) as small:
        seconds = starts(program, small)
    row("Start of the process to ready, the demo's model", f"{seconds * 1e3:.0f} ms", "≤ 1 s", seconds <= 1)
    row("The same, the pretrained model", f"{starts(program, model) * 1e3:.0f} ms", "-", None)
    parts, memory = overload(program, model, rates["codex"])
    of = lambda part, wanted: [whole for status, _, whole, _ in part if status == wanted]
    answered, refused = ([whole for part in parts for whole in of(part, status)] for status in (200, 429))
    lost = sum(map(len, parts)) - len(answered) - len(refused)
    slowest = p95(refused) * 1e3 if refused else 0.0
    told = f"{len(answered)} answered, {len(refused)} refused within {slowest:.0f} ms (p95), {lost} lost"
    row(f"At 2 × capacity for {OVERLOAD // 60} minutes", told, "refused within 50 ms, none lost", lost == 0 and slowest < 50)
    first, last = p95(of(parts[0], 200)), p95(of(parts[-1], 200))
    row("Its answered requests, p95 in the first and in the last minute", f"{first:.2f} and {last:.2f} s", "holds", last <= 1.1 * first)
    row("Its memory after the first and after the last minute", f"{memory[0]:.1f} and {memory[-1]:.1f} MB", "flat", memory[-1] <= memory[0] + 5)
    more = idle(program, model)
    row(f"{IDLE:,} idle connections", f"{more:.1f} MB more", "≤ 20 MB", more <= 20)
    (without, mirrored, again), taken = copies(program, model, rates["codex"], rounds)
    between = (without + again) / 2
    told = f"{without:.0f} and {again:.0f} ms without, {mirrored:.0f} ms with {taken} copies: {100 * (mirrored / between - 1):+.1f} %"
    row("Copies of 10 % of the requests, p95 of the incumbent at half load", told, "≤ 2 %", mirrored <= 1.02 * between)


match sys.argv[1:]:
    case [program, model, rounds]:
        measure(program, model, int(rounds))
    case [program, model, rounds, binary, gguf]:
        measure(program, model, int(rounds), (binary, gguf))
    case _:
        sys.exit(__doc__)
