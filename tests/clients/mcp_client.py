"""Uses the reference client of the Model Context Protocol, unchanged, against `codex-tools mcp`. Prints what it tried; an assertion
ends it with an error.

    python mcp_client.py CODEX_TOOLS ROOT

ROOT holds the folder `run` of a run with a model and a ledger whose last row is the loss 0.5 of step 7.
"""

import asyncio
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

PROGRAM, ROOT = sys.argv[1:3]


def field(value, *names):
    """Returns the first of these attributes that a value has: versions of the client spell them differently."""
    return next(getattr(value, name) for name in names if hasattr(value, name))


async def main():
    parameters = StdioServerParameters(command=PROGRAM, args=["mcp", "--root", ROOT])
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        hello = await session.initialize()
        info = field(hello, "server_info", "serverInfo")
        assert info.name == "codex-tools" and hello.instructions, hello
        print("server:", info.name, info.version)

        tools = (await session.list_tools()).tools
        names = sorted(tool.name for tool in tools)
        assert names == ["judge_evaluation", "list_evaluations", "list_runs", "show_run", "tail_metrics", "verify_model"], names
        for tool in tools:
            assert field(tool.annotations, "read_only_hint", "readOnlyHint") is True, tool
            assert field(tool, "input_schema", "inputSchema")["type"] == "object", tool
        print("tools:", ", ".join(names))

        async def call(name, **arguments):
            result = await session.call_tool(name, arguments)
            return field(result, "is_error", "isError"), field(result, "structured_content", "structuredContent"), result.content

        failed, listed, _ = await call("list_runs")
        assert not failed and [run["path"] for run in listed["runs"]] == ["run"], listed
        failed, rows, _ = await call("tail_metrics", run="run", metric="loss")
        assert not failed and [(row["step"], row["value"]) for row in rows["rows"]] == [(7, 0.5)], rows
        failed, verified, _ = await call("verify_model", run="run")
        assert not failed and len(verified["model"]) == 64 and verified["verified"] is False, verified
        print("model:", verified["model"])
        failed, _, content = await call("show_run", run="../..")
        assert failed and "outside the root" in content[0].text, content
        print("refused:", content[0].text)


asyncio.run(main())
