"""Uses the OpenAI client of PyPI, unchanged, against a server. Prints what it tried; an assertion ends it with an error.

    python check.py URL KEY TOOLS_URL

The chat template of the first server has no place for tools. That of the second one has, and begins the reasoning.
"""

import json
import sys

import openai

URL, KEY, TOOLS_URL = sys.argv[1:4]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]


SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "answer": {"enum": ["yes", "no"]}},
    "required": ["sure", "answer"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "tell", "description": "Tells.", "strict": True, "parameters": SCHEMA}}


def refused(kind, told, call):
    try:
        call()
    except kind as error:
        assert told in str(error), error
        return
    raise AssertionError(f"{told}: nothing was raised")


def tools_and_reasoning(client):
    name = client.models.list().data[0].id
    question = {"role": "user", "content": "Are you sure?"}
    ended = {"chat_template_kwargs": {"enable_thinking": False}}
    choice = {"type": "function", "function": {"name": "tell"}}
    asked = {"model": name, "messages": [question], "tools": [TOOL], "extra_body": ended}
    called = client.chat.completions.create(**asked, tool_choice=choice)
    (call,) = called.choices[0].message.tool_calls
    assert called.choices[0].finish_reason == "tool_calls" and call.function.name == "tell", called
    assert list(json.loads(call.function.arguments)) == ["sure", "answer"], call
    streamed, reason = "", None
    for chunk in client.chat.completions.create(**asked, tool_choice=choice, stream=True):
        streamed += "".join(part.function.arguments for part in chunk.choices[0].delta.tool_calls or [])
        reason = chunk.choices[0].finish_reason or reason
    assert (streamed, reason) == (call.function.arguments, "tool_calls"), streamed
    # The result of the tool goes back, and the model goes on.
    result = {"role": "tool", "tool_call_id": call.id, "content": "yes"}
    history = [question, called.choices[0].message, result]
    answer = client.chat.completions.create(**{**asked, "messages": history}, max_tokens=6)
    assert answer.usage.prompt_tokens > called.usage.prompt_tokens, answer.usage
    flat = {"type": "function", **TOOL["function"]}
    response = client.responses.create(
        model=name, input="Are you sure?", tools=[flat], tool_choice={"type": "function", "name": "tell"}, extra_body=ended
    )
    assert [item.type for item in response.output] == ["function_call"], response
    assert list(json.loads(response.output[0].arguments)) == ["sure", "answer"], response
    refused(
        openai.BadRequestError,
        "is not among the tools",
        lambda: client.chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "ask"}}),
    )
    print("tools:", call.function.name, call.function.arguments)

    asked = {"model": name, "messages": [question], "max_tokens": 30, "extra_body": {"thinking_token_budget": 12}}
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    # The client keeps the fields that OpenAI's API does not have.
    assert message.reasoning and message.reasoning == message.reasoning_content and message.content, message
    reasoned = whole.usage.completion_tokens_details.reasoning_tokens
    assert 12 <= reasoned < whole.usage.completion_tokens, whole.usage
    parts = {"reasoning": "", "reasoning_content": "", "content": ""}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for part in parts:
            parts[part] += getattr(chunk.choices[0].delta, part, None) or ""
    assert parts == {part: getattr(message, part) for part in parts}, parts
    response = client.responses.create(
        model=name, input="Are you sure?", max_output_tokens=30, extra_body={"thinking_token_budget": 12}
    )
    assert [item.type for item in response.output] == ["reasoning", "message"], response
    assert response.output_text == message.content and response.usage.output_tokens_details.reasoning_tokens == reasoned
    print("reasoning:", reasoned, "tokens, then an answer")


def main():
    client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)

    models = client.models.list().data
    assert len(models) == 1 and models[0].model_digest and models[0].ring, models
    name = models[0].id
    assert client.models.retrieve(name).id == name
    print("models:", name, models[0].ring)

    chat = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=2)
    text = chat.choices[0].message.content
    assert chat.system_fingerprint and chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    scores = chat.choices[0].logprobs.content
    assert scores and all(len(score.top_logprobs) == 2 and score.logprob <= 0 for score in scores), scores
    print("chat:", repr(text))

    pieces, usage = [], None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=12, stream=True, stream_options=options):
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    assert "".join(pieces) == text, pieces
    assert usage.completion_tokens == chat.usage.completion_tokens and usage.prompt_tokens_details.cached_tokens > 0, usage
    with client.chat.completions.stream(model=name, messages=MESSAGES, max_tokens=12) as stream:
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError as cut:  # The client raises where max_tokens ended the text.
            final = cut.completion
        assert final.choices[0].message.content == text
    print("streamed:", len(pieces), "pieces,", usage.prompt_tokens_details.cached_tokens, "cached tokens")

    drawn = {"model": name, "messages": MESSAGES, "max_tokens": 8, "temperature": 1.0, "seed": 7, "n": 3}
    one, other = client.chat.completions.create(**drawn), client.chat.completions.create(**drawn)
    texts = [choice.message.content for choice in one.choices]
    assert len(texts) == 3 and texts == [choice.message.content for choice in other.choices], texts
    print("seed and n:", texts)

    completion = client.completions.create(model=name, prompt="The capital of France is", max_tokens=6, logprobs=1)
    assert len(completion.choices[0].logprobs.tokens) == completion.usage.completion_tokens
    print("completion:", repr(completion.choices[0].text))

    prompt = "The capital of France is"
    repeated = client.completions.create(model=name, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    scores = repeated.choices[0].logprobs
    assert repeated.choices[0].text == prompt and repeated.usage.completion_tokens == 0, repeated
    assert len(scores.tokens) == repeated.usage.prompt_tokens and scores.token_logprobs[0] is None, scores
    assert all(value <= 0 for value in scores.token_logprobs[1:]) and scores.text_offset[0] == 0, scores
    print("prompt:", len(scores.tokens), "tokens with their log-probabilities")

    asked = {"model": name, "instructions": "Be brief.", "input": "What is the capital of France?", "max_output_tokens": 12}
    response = client.responses.create(**asked)
    assert response.output_text == text and response.usage.output_tokens == chat.usage.completion_tokens, response
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert events[-1].response.output_text == text
    print("response:", len(events), "events")

    named = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    bound = client.chat.completions.create(model=name, messages=MESSAGES, response_format=named)
    answer = json.loads(bound.choices[0].message.content)
    assert list(answer) == ["sure", "answer"] and bound.choices[0].finish_reason == "stop", bound
    flat = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}
    response = client.responses.create(model=name, input="Are you sure?", text=flat)
    assert list(json.loads(response.output_text)) == ["sure", "answer"], response
    chosen = client.completions.create(model=name, prompt="Are you sure?", extra_body={"guided_choice": ["yes", "no"]})
    assert chosen.choices[0].text in ("yes", "no"), chosen
    print("structured:", answer, chosen.choices[0].text)

    refused(openai.BadRequestError, "stores no responses", lambda: client.responses.create(**asked, previous_response_id="resp_1"))
    refused(openai.NotFoundError, "is not served here", lambda: client.chat.completions.create(model="gpt-4", messages=MESSAGES))
    extra = {"guided_regex": "("}
    refused(openai.BadRequestError, "guided_regex", lambda: client.completions.create(model=name, prompt="1", extra_body=extra))
    wrong = client.with_options(api_key="sk-wrong-0123456789")
    refused(openai.AuthenticationError, "the API key is not valid", lambda: wrong.models.list())
    refused(
        openai.BadRequestError,
        "chat template has no place for tools",
        lambda: client.chat.completions.create(model=name, messages=MESSAGES, tools=[TOOL]),
    )
    print("errors: as classes of the client")

    tools_and_reasoning(openai.OpenAI(base_url=TOOLS_URL + "/v1", api_key=KEY, max_retries=0))


main()
