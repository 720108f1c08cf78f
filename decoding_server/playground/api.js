// The server's API: JSON, streams of events, errors with their field. The key lives in this tab's session only.

const KEY = "decoding-server.key";

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.param = body?.param ?? null;
    this.code = body?.code ?? null;
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function checked(response) {
  if (response.ok) return response;
  let body = null;
  try {
    body = (await response.json()).error;
  } catch {
    // Not our error body: a proxy's, for instance.
  }
  throw new ApiError(response.status, body);
}

/** A GET's JSON. Paths are relative to the page, so that a prefix of a proxy stays. */
export async function getJson(path) {
  return (await checked(await fetch(path, { headers: headers(), cache: "no-store" }))).json();
}

/** The chunks of a streamed request, until [DONE]. Throws ApiError, also for an error inside the stream. */
export async function* streamed(path, body, signal) {
  const response = await checked(
    await fetch(path, {
      method: "POST",
      headers: headers({ "content-type": "application/json" }),
      body: JSON.stringify(body),
      signal,
    }),
  );
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(response.status, { message: "The connection ended before the answer did." });
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield chunkOf(data, response.status);
    }
  }
}

function chunkOf(data, status) {
  let chunk = null;
  try {
    chunk = JSON.parse(data);
  } catch {
    // Said below.
  }
  if (chunk?.error) throw new ApiError(500, chunk.error);
  if (Array.isArray(chunk?.choices)) return chunk;
  throw new ApiError(status, { message: `The server sent what is no part of an answer: ${data.slice(0, 80)}` });
}
