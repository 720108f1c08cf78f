// One request at work: what its stream has told so far.

import { streamed } from "./api.js";
import { SearchTree } from "./search_tree.js";

export class Run {
  /** body: the request, without what streaming needs. changed: called after every chunk and at the end. */
  constructor(body, changed) {
    this.body = body;
    this.changed = changed;
    this.state = "running"; // then done, stopped or failed
    this.text = "";
    this.tokens = [];
    this.rounds = [];
    this.tree = new SearchTree();
    this.usage = null;
    this.decoding = null;
    this.warnings = [];
    this.finish = null;
    this.stopReason = null;
    this.error = null;
    this.started = performance.now();
    this.seconds = 0;
    this.abort = new AbortController();
  }

  /** Reads the stream to its end. Never throws: what failed is in `error`. */
  async start() {
    const body = { ...this.body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
    try {
      for await (const chunk of streamed("v1/chat/completions", body, this.abort.signal)) {
        this.take(chunk);
        this.seconds = (performance.now() - this.started) / 1000;
        this.changed(this);
      }
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed") this.error = error;
    }
    this.seconds = (performance.now() - this.started) / 1000;
    this.changed(this);
  }

  stop() {
    this.abort.abort();
  }

  take(chunk) {
    if (chunk.decoding) this.decoding = chunk.decoding;
    if (chunk.warnings) this.warnings.push(...chunk.warnings);
    // A chunk with the counts alone must not hide what an earlier one said of the spend.
    if (chunk.usage) this.usage = { ...(this.usage ?? {}), ...chunk.usage };
    for (const record of chunk.trace ?? []) this.tell(record);
    for (const choice of chunk.choices) {
      if (choice.index !== 0) continue;
      this.text += choice.delta.content ?? "";
      if (choice.finish_reason) {
        this.finish = choice.finish_reason;
        this.stopReason = choice.stop_reason ?? null;
      }
    }
  }

  tell(record) {
    if (record.event === "token") this.tokens.push({ ...record, round: this.rounds.length - 1 });
    else if (record.event === "round") this.rounds.push(record);
    else this.tree.take(record);
  }
}
