// Uses the JavaScript client of OpenAI, unchanged, against two servers: one whose template has no place for tools, and one whose template
// has tools and begins the reasoning. Prints what it tried; an assertion ends it with an error. NODE_PATH names the folder of the package.
//
//     NODE_PATH=node_modules node check.cjs URL KEY TOOLS_URL
"use strict";

const assert = require("node:assert/strict");
const OpenAI = require("openai");

const [url, key, toolsUrl] = process.argv.slice(2);
const messages = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "What is the capital of France?" },
];
const schema = {
  type: "object",
  properties: { sure: { type: "boolean" }, answer: { enum: ["yes", "no"] } },
  required: ["sure", "answer"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "tell", description: "Tells.", strict: true, parameters: schema } };
const named = { type: "function", function: { name: "tell" } };

function follows(text) {
  const value = JSON.parse(text);
  assert.deepEqual(Object.keys(value), ["sure", "answer"]);
  assert.ok(typeof value.sure === "boolean" && ["yes", "no"].includes(value.answer), text);
}

async function counted(path, name) {
  const response = await fetch(url + path, { headers: { "x-api-key": key } });
  assert.equal(response.status, 200);
  const text = await response.text();
  return path === "/status" ? JSON.parse(text)[name] : Number(text.match(new RegExp(`^${name} (\\d+)$`, "m"))[1]);
}

async function answers(client, model) {
  const chat = await client.chat.completions.create({ model, messages, max_tokens: 12, logprobs: true, top_logprobs: 2 });
  const text = chat.choices[0].message.content;
  assert.equal(chat.usage.total_tokens, chat.usage.prompt_tokens + chat.usage.completion_tokens);
  assert.ok(chat.system_fingerprint && chat.choices[0].logprobs.content.every((score) => score.top_logprobs.length === 2));
  console.log("chat:", JSON.stringify(text));

  let streamed = "";
  let usage = null;
  let pieces = 0;
  const asked = { model, messages, max_tokens: 12, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(asked)) {
    usage = chunk.usage ?? usage;
    streamed += chunk.choices[0]?.delta?.content ?? "";
    pieces += 1;
  }
  assert.equal(streamed, text);
  assert.deepEqual(usage.completion_tokens, chat.usage.completion_tokens);
  assert.ok(usage.prompt_tokens_details.cached_tokens > 0 && usage.completion_tokens_details.reasoning_tokens === 0);
  // The helper of the package puts the pieces together by itself.
  const helper = client.chat.completions.stream({ model, messages, max_tokens: 12 });
  let told = "";
  helper.on("content", (delta) => (told += delta));
  await helper.done().catch((error) => assert.ok(error instanceof OpenAI.LengthFinishReasonError, error));
  assert.equal(told, text);
  console.log("streamed:", pieces, "pieces,", usage.prompt_tokens_details.cached_tokens, "cached tokens");

  const completion = await client.completions.create({ model, prompt: "The capital of France is", max_tokens: 6, logprobs: 1 });
  assert.equal(completion.choices[0].logprobs.tokens.length, completion.usage.completion_tokens);
  console.log("completion:", JSON.stringify(completion.choices[0].text));

  const prompt = "The capital of France is";
  const repeated = await client.completions.create({ model, prompt, max_tokens: 0, echo: true, logprobs: 1 });
  const { tokens, token_logprobs: scores, top_logprobs: likely, text_offset: offsets } = repeated.choices[0].logprobs;
  assert.deepEqual([repeated.choices[0].text, repeated.usage.completion_tokens], [prompt, 0]);
  assert.equal(tokens.length, repeated.usage.prompt_tokens);
  // The first token follows nothing.
  assert.ok(scores[0] === null && scores.length === tokens.length && scores.slice(1).every((score) => score <= 0), scores);
  assert.ok(likely.length === tokens.length && offsets[0] === 0 && offsets.length === tokens.length, offsets);
  // With a response, its scores follow those of the prompt.
  const longer = (await client.completions.create({ model, prompt, max_tokens: 6, echo: true, logprobs: 1 })).choices[0];
  assert.ok(longer.text.startsWith(prompt) && longer.logprobs.tokens.length > tokens.length, longer);
  assert.deepEqual(longer.logprobs.token_logprobs.slice(0, tokens.length), scores);
  console.log("prompt:", tokens.length, "tokens with their log-probabilities");

  const body = { model, instructions: "Be brief.", input: "What is the capital of France?", max_output_tokens: 12 };
  const response = await client.responses.create(body);
  assert.equal(response.output_text, text);
  const types = [];
  let deltas = "";
  for await (const event of await client.responses.create({ ...body, stream: true })) {
    types.push(event.type);
    deltas += event.type === "response.output_text.delta" ? event.delta : "";
  }
  assert.ok(types[0] === "response.created" && ["response.completed", "response.incomplete"].includes(types.at(-1)), types);
  assert.equal(deltas, text);
  console.log("response:", types.length, "events");

  const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  const bound = await client.chat.completions.parse({ model, messages, response_format: format });
  follows(bound.choices[0].message.content);
  console.log("structured:", bound.choices[0].message.content);
}

async function errors(client, model) {
  const refused = async (kind, status, told, call) => {
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof kind && error.status === status && error.message.includes(told), error);
      return true;
    });
  };
  const chat = (more) => client.chat.completions.create({ model, messages, ...more });
  const wrong = new OpenAI({ baseURL: url + "/v1", apiKey: "sk-wrong-0123456789", maxRetries: 0 });
  await refused(OpenAI.AuthenticationError, 401, "the API key is not valid", () => wrong.models.list());
  await refused(OpenAI.NotFoundError, 404, "is not served here", () => chat({ model: "gpt-4" }));
  await refused(OpenAI.NotFoundError, 404, "is not served here", () => client.models.retrieve("gpt-4"));
  await refused(OpenAI.BadRequestError, 400, "top_logprobs", () => chat({ logprobs: true, top_logprobs: 21 }));
  await refused(OpenAI.BadRequestError, 400, "stores no responses", () =>
    client.responses.create({ model, input: "1", previous_response_id: "resp_1" }),
  );
  await refused(OpenAI.BadRequestError, 400, "chat template has no place for tools", () => chat({ tools: [tool] }));
  console.log("errors: as classes of the client");
}

// The generation ends with the stream: otherwise all tokens would be counted.
async function aborted(client, model) {
  const tokens = () => counted("/metrics", "codex_ml_inference_inter_token_seconds_count");
  const [choices, limit, before] = [8, 900, await tokens()];
  const controller = new AbortController();
  const asked = { model, messages, max_tokens: limit, n: choices, temperature: 1, seed: 3, stream: true };
  const stream = await client.chat.completions.create(asked, { signal: controller.signal });
  let pieces = 0;
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta?.content && (pieces += 1) === 3) controller.abort();
  }
  for (let tries = 0; (await counted("/status", "active_sessions")) > 0; tries += 1) {
    assert.ok(tries < 100, "the requests are still running");
    await new Promise((done) => setTimeout(done, 20));
  }
  const generated = (await tokens()) - before;
  assert.ok(generated < (choices * limit) / 2, `${generated} tokens were generated`);
  console.log("aborted: after", generated, "of", choices * limit, "tokens");
}

async function toolsAndReasoning(client, model) {
  const question = { role: "user", content: "Are you sure?" };
  const ended = { chat_template_kwargs: { enable_thinking: false } };
  const asked = { model, messages: [question], tools: [tool], tool_choice: named, ...ended };
  const called = await client.chat.completions.create(asked);
  const [choice] = called.choices;
  assert.equal(choice.finish_reason, "tool_calls");
  const [call] = choice.message.tool_calls;
  assert.ok(call.type === "function" && call.function.name === "tell" && call.id, call);
  follows(call.function.arguments);
  let streamed = "";
  let reason = null;
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    for (const part of chunk.choices[0].delta.tool_calls ?? []) streamed += part.function.arguments;
    reason = chunk.choices[0].finish_reason ?? reason;
  }
  assert.deepEqual([streamed, reason], [call.function.arguments, "tool_calls"]);
  // The result of the tool goes back, and the model goes on.
  const result = { role: "tool", tool_call_id: call.id, content: "yes" };
  const more = { model, messages: [question, choice.message, result], tools: [tool], max_tokens: 6, ...ended };
  const answer = await client.chat.completions.create(more);
  assert.ok(answer.usage.prompt_tokens > called.usage.prompt_tokens, answer.usage);
  console.log("tools:", call.function.name, call.function.arguments);

  const thinks = { model, messages: [question], max_tokens: 30, thinking_token_budget: 12 };
  const whole = await client.chat.completions.create(thinks);
  const message = whole.choices[0].message;
  assert.ok(message.reasoning && message.reasoning === message.reasoning_content && message.content, message);
  assert.ok(whole.usage.completion_tokens_details.reasoning_tokens >= 12, whole.usage);
  const parts = { reasoning: "", reasoning_content: "", content: "" };
  for await (const chunk of await client.chat.completions.create({ ...thinks, stream: true })) {
    for (const name of Object.keys(parts)) parts[name] += chunk.choices[0].delta[name] ?? "";
  }
  for (const name of Object.keys(parts)) assert.equal(parts[name], message[name]);
  console.log("reasoning:", whole.usage.completion_tokens_details.reasoning_tokens, "tokens, then an answer");
}

async function main() {
  const client = new OpenAI({ baseURL: url + "/v1", apiKey: key, maxRetries: 0 });
  const models = (await client.models.list()).data;
  assert.ok(models.length === 1 && models[0].model_digest && models[0].ring, models);
  const model = models[0].id;
  assert.equal((await client.models.retrieve(model)).id, model);
  console.log("models:", model, models[0].ring);
  await answers(client, model);
  await errors(client, model);
  await aborted(client, model);
  const other = new OpenAI({ baseURL: toolsUrl + "/v1", apiKey: key, maxRetries: 0 });
  await toolsAndReasoning(other, (await other.models.list()).data[0].id);
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
