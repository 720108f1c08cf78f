"""Before the model is there, and while the server drains."""

import asyncio

import httpx
import pytest

from decoding_server.gate import Gate


@pytest.fixture
async def gate():
    return Gate()


def client(gate):
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate")


async def slow_app(scope, receive, send):
    await asyncio.sleep(0.2)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def test_loading(gate):
    async with client(gate) as http:
        health = await http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        refused = await http.post("/v1/completions", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["message"] == "The model is being loaded."
        assert refused.headers["x-request-id"]


PAGE = "http://page.example"


@pytest.mark.parametrize("draining", [False, True], ids=["loading", "draining"])
async def test_pages_of_other_origins_may_read_refusals(draining):
    gate = Gate([PAGE])
    if draining:
        gate.open(slow_app)
        await gate.drain(1)
    async with client(gate) as http:
        refused = await http.post("/v1/completions", json={}, headers={"origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (503, PAGE)
        assert "retry-after" in refused.headers["access-control-expose-headers"]
        stranger = await http.post("/v1/completions", json={}, headers={"origin": "http://other.example"})
        assert (stranger.status_code, "access-control-allow-origin" in stranger.headers) == (503, False)
        asked = {"origin": PAGE, "access-control-request-method": "POST"}
        preflight = await http.options("/v1/completions", headers=asked)  # else the page could not see the 503
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)


async def test_drain_waits_for_what_runs_and_refuses_the_rest(gate):
    gate.open(slow_app)
    async with client(gate) as http:
        running = asyncio.create_task(http.get("/v1/models"))
        await asyncio.sleep(0.05)
        drain = asyncio.create_task(gate.drain(5))
        await asyncio.sleep(0.05)
        assert (await http.get("/v1/models")).status_code == 503
        assert not drain.done()
        assert (await running).status_code == 204
        assert await drain


async def test_drain_gives_up(gate):
    gate.open(slow_app)
    async with client(gate) as http:
        running = asyncio.create_task(http.get("/v1/models"))
        await asyncio.sleep(0.05)
        assert not await gate.drain(0.05)
        await running
