"""The command line: `decoding-server serve [MODEL]`, `chat`, `train-value`, `bench`, `--version`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decoding_server import __version__
from decoding_server.bench.command import add_bench, bench

if TYPE_CHECKING:
    from decoding_server.config import ServerConfig
    from strategies.runtime import Runtime

# Modules are imported where they are used: help, version and configuration errors must not wait for a model library.


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a failure such as a model that can't be loaded, 2 a wrong flag or configuration, 3 a
    training that is not complete and goes on when it is started again."""
    parser = argparse.ArgumentParser(prog="decoding-server", description="OpenAI-compatible inference server.")
    parser.add_argument("--version", action="version", version=f"decoding-server {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    given = list(sys.argv[1:] if arguments is None else arguments)
    add_serve(commands.add_parser("serve", help="serve a model over HTTP"), complete="serve" in given[:1])
    add_chat(commands.add_parser("chat", help="talk to a running server in the terminal"))
    add_train_value(commands.add_parser("train-value", help="train a value head for searches"))
    add_bench(commands.add_parser("bench", help="measure decoding: success and cost of searches"))
    flags = parser.parse_args(given)
    return {"serve": serve, "chat": chat, "train-value": train_value, "bench": bench}[flags.command](flags)


def add_serve(parser: argparse.ArgumentParser, *, complete: bool) -> None:
    """One flag for every key of `ServerConfig`, whose description is the help text; values are checked there."""
    parser.description = (
        "Serve a model. Every flag can also be set as DECODING_SERVER_NAME in the environment or as a key of the "
        "--config file; a flag wins over the environment, the environment over the file."
    )
    if not complete:
        return
    from decoding_server.config import ServerConfig

    for name, field in ServerConfig.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        default = field.get_default(call_default_factory=True)
        if name == "model":
            parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=text)
            continue
        if default not in (None, [], {}, False, True):
            text += f" (default {default})"
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            action = "append" if isinstance(default, list) else "store"
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, metavar="VALUE", help=text)


def add_chat(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk to a running server. /help lists commands, such as /strategy NAME; Ctrl-C stops an answer."
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the server (default %(default)s)")
    parser.add_argument("--model", help="served name; absent: the server's first")
    parser.add_argument("--api-key", help="key, where the server wants one")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--decoding", metavar="NAME|JSON", help="strategy, preset or `decoding` object to begin with")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--max-tokens", type=int, help="longest answer, in tokens")


def add_train_value(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Sample solutions of questions with known answers, learn from the model's hidden states which become right, "
        "and write a value head for `serve --value-head`. Started again with the same --output, it goes on."
    )
    parser.add_argument("questions_file", metavar="QUESTIONS", help='JSONL: {"question": ..., "answer": ...} a line')
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the head and of the solutions")
    parser.add_argument("--model", help="as `serve` takes it; absent: the embedded default")
    parser.add_argument("--questions", type=_count, metavar="N", help="how many, at random (default all)")
    parser.add_argument("--rollouts", type=_count, default=4, metavar="R", help="solutions of each (default 4)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the solutions (default 0.8)")
    parser.add_argument("--max-tokens", type=_count, default=512, help="of a solution; cut off is wrong (default 512)")
    parser.add_argument("--prompt", default="{question}", help="text around {question} (default: nothing)")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--arch", choices=("linear", "mlp"), default="linear", help="of the head (default linear)")
    parser.add_argument("--held-out", type=_share, default=0.1, metavar="SHARE", help="dev, and as many test questions")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions, the solutions and the fit")
    parser.add_argument(
        "--calibrate",
        choices=("self-eval", "prm", "http"),
        help="instead of a head, fit the file that makes these values probabilities (`serve --value-calibration`)",
    )
    parser.add_argument("--batch", type=_count, default=32, help="solutions sampled at once (default 32)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="begin no further question after so long")
    for name in ENGINE_FLAGS:
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help="as of `serve`")


ENGINE_FLAGS = (
    *("dtype", "device", "threads", "max_model_len", "kv_cache_memory", "chat_template", "config"),
    *("reward_model", "reward_protocol", "reward_dtype", "verifier_url", "verifier_timeout"),
)
"""Settings of `serve` that say how the model is run, and what may be calibrated."""


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _share(text: str) -> float:
    if not 0 < (number := float(text)) < 0.5:
        raise argparse.ArgumentTypeError("must lie between 0 and 0.5")
    return number


def train_value(flags: argparse.Namespace) -> int:
    from decoding_server.config import ConfigError, load_config
    from decoding_server.openmp import configure_openmp

    configure_openmp()
    from decoding_server.value_training.command import TrainingPlan
    from decoding_server.value_training.command import train_value as train
    from decoding_server.value_training.questions import QuestionsError
    from decoding_server.value_training.rollout_store import StoreError
    from decoding_server.value_training.rollouts import QUESTION_MARK, RolloutSettings
    from decoding_server.values import load_scorers
    from strategies.errors import DecodingError

    if QUESTION_MARK not in flags.prompt:
        print(f"error: --prompt must hold {QUESTION_MARK}", file=sys.stderr)
        return 2
    if not 0 <= flags.temperature <= 2:
        print("error: --temperature must lie between 0 and 2", file=sys.stderr)
        return 2
    given = {name: value for name, value in vars(flags).items() if name in ENGINE_FLAGS}
    settings = RolloutSettings(
        flags.rollouts, flags.temperature, flags.max_tokens, flags.seed, flags.prompt, flags.system
    )
    plan = TrainingPlan(
        settings, flags.questions, flags.held_out, flags.arch, flags.batch, flags.time_limit, flags.calibrate
    )
    try:
        config = load_config(given if flags.model is None else {**given, "model": flags.model}).config
        missing = {"prm": config.reward_model, "http": config.verifier_url}.get(flags.calibrate or "", "")
        if missing is None:
            raise ConfigError(f"--calibrate {flags.calibrate} needs --reward-model or --verifier-url")
        return train(
            Path(flags.questions_file),
            Path(flags.output),
            plan,
            lambda: load_runtime(config),
            lambda runtime: load_scorers(runtime, config),
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (QuestionsError, StoreError, DecodingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def serve(flags: argparse.Namespace) -> int:
    from decoding_server.config import ConfigError, load_config

    try:
        loaded = load_config({name: value for name, value in vars(flags).items() if name != "command"})
        from decoding_server.openmp import configure_openmp
        from decoding_server.server import run

        configure_openmp()
        return run(loaded, lambda: load_runtime(loaded.config))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def load_runtime(config: "ServerConfig") -> "Runtime":
    """Resolves and loads the model. Raises ModelLoadError."""
    return load_vllm(config) if config.runtime == "vllm" else load_torch(config)


def load_vllm(config: "ServerConfig") -> "Runtime":
    from models.loading import resolve
    from models.vllm_runtime.load import VllmOptions, load_runtime
    from models.vllm_runtime.version import installed, require

    require(installed())  # before a model is downloaded
    options = VllmOptions(
        dtype=config.dtype,
        device=config.device,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_memory=config.kv_cache_memory,
        max_waiting=config.max_waiting,
        prefix_cache=config.prefix_cache,
        chat_template=config.chat_template,
        threads=config.threads,
        engine_arguments=config.engine_args,
    )
    return load_runtime(resolve(config.model), options)


def load_torch(config: "ServerConfig") -> "Runtime":
    from models.loading import resolve
    from models.torch_runtime.load import EngineOptions
    from models.torch_runtime.load import load_runtime as load

    options = EngineOptions(
        dtype=config.dtype,
        device=config.device,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_memory=config.kv_cache_memory,
        max_waiting=config.max_waiting,
        prefix_cache=config.prefix_cache,
        chat_template=config.chat_template,
        threads=config.threads,
        draft_models=[resolve(draft) for draft in config.draft_model],
        draft_dtype=config.draft_dtype,
        early_exit_layers=config.early_exit_layers,
    )
    return load(resolve(config.model), options)


def chat(flags: argparse.Namespace) -> int:
    from decoding_server.terminal_chat import TerminalChat

    return TerminalChat(
        url=flags.url,
        model=flags.model,
        api_key=flags.api_key,
        system=flags.system,
        decoding=flags.decoding,
        options={"temperature": flags.temperature, "max_tokens": flags.max_tokens},
    ).run()
