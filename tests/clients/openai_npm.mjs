// Run by test_openai_npm.py: asks the server through the `openai` npm package and prints what came as one JSON object.
// Environment: BASE_URL, MODEL, OPENAI_API_KEY.
import OpenAI from "openai";

const model = process.env.MODEL;
const client = new OpenAI({ baseURL: process.env.BASE_URL, maxRetries: 0 });
const request = {
  model,
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
  max_tokens: 40,
};

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { name: error.constructor.name, status, code, param, type, requestID };
  }
}

const { data: chat, response: raw } = await client.chat.completions.create(request).withResponse();

const streamed = { text: "", finishReasons: [], usage: null, chunks: 0, ids: [] };
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...request, ...options })) {
  streamed.chunks += 1;
  if (!streamed.ids.includes(chunk.id)) streamed.ids.push(chunk.id);
  for (const choice of chunk.choices) {
    streamed.text += choice.delta.content ?? "";
    if (choice.finish_reason) streamed.finishReasons.push(choice.finish_reason);
  }
  if (chunk.usage) streamed.usage = chunk.usage;
}

const helper = client.chat.completions.stream({ ...request, ...options });
let helped = "";
helper.on("content", (delta) => (helped += delta));
const final = await helper.finalChatCompletion();

const completion = await client.completions.create({
  model,
  prompt: "One, two, three, four, five, six,",
  temperature: 0,
  max_tokens: 4,
  logprobs: 1,
});

const models = [];
for await (const entry of client.models.list()) models.push(entry.id);

const closed = await client.chat.completions.create({ ...request, max_tokens: 4000, ignore_eos: true, stream: true });
for await (const chunk of closed) {
  if (chunk.choices[0].delta.content) break; // leaving the loop aborts the request
}

const failures = {
  badRequest: await failure(() => client.chat.completions.create({ ...request, temperature: 9 })),
  badStream: await failure(() => client.chat.completions.create({ ...request, temperature: 9, stream: true })),
  notFound: await failure(() => client.chat.completions.create({ ...request, model: "gpt-unknown" })),
  wrongKey: await failure(() => client.withOptions({ apiKey: "wrong" }).chat.completions.create(request)),
  timeout: await failure(() =>
    client.chat.completions.create({ ...request, max_tokens: 4000, ignore_eos: true }, { timeout: 300 }),
  ),
};

const requestId = raw.headers.get("x-request-id");
console.log(JSON.stringify({ chat, requestId, streamed, helped, final, completion, models, failures }));
