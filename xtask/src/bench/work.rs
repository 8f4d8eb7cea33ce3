//! What is compared: each line's work, who does it, and the ratio that is the goal. Knows no results.

/// One line of the table.
pub(super) struct Work {
    /// What `--only` calls it.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) ours: Subject,
    /// The best of them is what ours is held against.
    pub(super) peers: &'static [Subject],
    pub(super) goal: Goal,
}

/// A program that does the work.
pub(super) struct Subject {
    pub(super) label: &'static str,
    pub(super) program: Program,
    /// Separated by spaces. `MODELS/` at the beginning of one stands for the lab's models, `TEXTS/` for those beside the
    /// scripts, `PROMPT` for [`PROMPT`].
    pub(super) args: &'static str,
    pub(super) value: Reading,
}

/// The prompt of what starts.
pub(super) const PROMPT: &str = "The capital of France is";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Program {
    /// The binary of this tree.
    Ours,
    /// A script of `benches/compare` in the lab's environment with torch.
    Torch(&'static str),
    /// The same in the one with llama.cpp.
    Llama(&'static str),
}

/// Where a subject's value is found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// A speed that it reports, in tokens per second.
    Speed(&'static str),
    /// A time that it reports, in seconds.
    Time(&'static str),
    /// From the start of its process to its first output, in seconds.
    FirstOutput,
}

/// What ours over the best peer's should be: speed at least so much, time and memory at most.
#[derive(Clone, Copy, Default)]
pub(super) struct Goal {
    pub(super) speed: Option<f64>,
    pub(super) time: Option<f64>,
    pub(super) memory: Option<f64>,
}

const NO_GOAL: Goal = Goal { speed: None, time: None, memory: None };
const TRAIN: Reading = Reading::Speed("train_tokens_per_second");
const PREFILL: Reading = Reading::Speed("prefill_tokens_per_second");
const DECODE: Reading = Reading::Speed("decode_tokens_per_second");
const TEXTS: Reading = Reading::Speed("texts_per_second");

const fn speed(at_least: f64) -> Goal {
    Goal { speed: Some(at_least), ..NO_GOAL }
}

const fn ours(args: &'static str, value: Reading) -> Subject {
    Subject { label: "metal-candle", program: Program::Ours, args, value }
}

const fn torch(label: &'static str, script: &'static str, args: &'static str, value: Reading) -> Subject {
    Subject { label, program: Program::Torch(script), args, value }
}

const fn llama(label: &'static str, args: &'static str, value: Reading) -> Subject {
    Subject { label, program: Program::Llama("llama.py"), args, value }
}

pub(super) const WORKS: &[Work] = &[
    Work {
        name: "train-smollm2-bf16",
        title: "LoRA step, SmolLM2-135M, 4 × 256, rank 8, all-linear, bf16 weights",
        ours: ours(
            "bench --model MODELS/smollm2-135m --dtype bf16 --train --batch 4 --seq 256 --target all-linear --rank 8 --repeat 5",
            TRAIN,
        ),
        peers: &[torch(
            "torch bf16 + PEFT",
            "torch_peft.py",
            "MODELS/smollm2-135m --dtype bfloat16 --batch 4 --seq 256 --target all-linear --rank 8 --repeat 5",
            TRAIN,
        )],
        goal: Goal { memory: Some(0.5), ..speed(1.8) },
    },
    Work {
        name: "train-qwen-bf16",
        title: "LoRA step, Qwen2.5-0.5B's shape, 1 × 512, rank 8, q and v, bf16 weights",
        ours: ours(
            "bench --model MODELS/qwen05-rand --dtype bf16 --train --batch 1 --seq 512 --target q_proj,v_proj --rank 8 --repeat 5",
            TRAIN,
        ),
        peers: &[torch(
            "torch bf16 + PEFT",
            "torch_peft.py",
            "MODELS/qwen05-rand --dtype bfloat16 --batch 1 --seq 512 --target q_proj,v_proj --rank 8 --repeat 5",
            TRAIN,
        )],
        goal: Goal { memory: Some(0.5), ..speed(1.8) },
    },
    Work {
        name: "train-smollm2-f32",
        title: "the first in full f32",
        ours: ours(
            "bench --model MODELS/smollm2-135m --dtype f32 --train --batch 4 --seq 256 --target all-linear --rank 8 --repeat 5",
            TRAIN,
        ),
        peers: &[torch(
            "torch f32 + PEFT",
            "torch_peft.py",
            "MODELS/smollm2-135m --dtype float32 --batch 4 --seq 256 --target all-linear --rank 8 --repeat 5",
            TRAIN,
        )],
        goal: speed(2.5),
    },
    Work {
        name: "checkpoint-4096",
        title: "LoRA step with gradient checkpointing, SmolLM2-135M, 1 × 4096 against 1 × 2048",
        ours: ours(
            "bench --model MODELS/smollm2-135m --train --batch 1 --seq 4096 --grad-checkpoint --repeat 1",
            TRAIN,
        ),
        peers: &[Subject {
            label: "ours, 1 × 2048",
            ..ours("bench --model MODELS/smollm2-135m --train --batch 1 --seq 2048 --grad-checkpoint --repeat 1", TRAIN)
        }],
        goal: Goal { memory: Some(2.1), ..NO_GOAL },
    },
    Work {
        name: "prefill-smollm2",
        title: "prefill of 512 tokens, SmolLM2-135M, bf16",
        ours: ours("bench --model MODELS/smollm2-135m --dtype bf16 --prompt 512 --gen 1 --repeat 5", PREFILL),
        peers: &[
            torch(
                "torch bf16",
                "torch_generate.py",
                "MODELS/smollm2-135m --dtype bfloat16 --prompt 512 --gen 1 --repeat 5",
                PREFILL,
            ),
            llama("llama.cpp BF16", "MODELS/smol-BF16.gguf --prompt 512 --gen 1 --repeat 5", PREFILL),
            llama(
                "llama.cpp BF16, flash attention",
                "MODELS/smol-BF16.gguf --prompt 512 --gen 1 --repeat 5 --flash-attn",
                PREFILL,
            ),
        ],
        goal: speed(1.3),
    },
    Work {
        name: "decode-smollm2",
        title: "decode of 128 tokens after 16, SmolLM2-135M, bf16",
        ours: ours("bench --model MODELS/smollm2-135m --dtype bf16 --prompt 16 --gen 128 --repeat 5", DECODE),
        peers: &[
            torch(
                "torch bf16",
                "torch_generate.py",
                "MODELS/smollm2-135m --dtype bfloat16 --prompt 16 --gen 128 --repeat 5",
                DECODE,
            ),
            llama("llama.cpp BF16", "MODELS/smol-BF16.gguf --prompt 16 --gen 128 --repeat 5", DECODE),
            llama(
                "llama.cpp BF16, flash attention",
                "MODELS/smol-BF16.gguf --prompt 16 --gen 128 --repeat 5 --flash-attn",
                DECODE,
            ),
        ],
        goal: speed(1.4),
    },
    Work {
        name: "decode-qwen",
        title: "decode of 128 tokens after 16, Qwen2.5-0.5B's shape, bf16",
        ours: ours("bench --model MODELS/qwen05-rand --dtype bf16 --prompt 16 --gen 128 --repeat 5", DECODE),
        peers: &[
            torch(
                "torch bf16",
                "torch_generate.py",
                "MODELS/qwen05-rand --dtype bfloat16 --prompt 16 --gen 128 --repeat 5",
                DECODE,
            ),
            llama("llama.cpp BF16", "MODELS/qwen05-BF16.gguf --prompt 16 --gen 128 --repeat 5", DECODE),
            llama(
                "llama.cpp BF16, flash attention",
                "MODELS/qwen05-BF16.gguf --prompt 16 --gen 128 --repeat 5 --flash-attn",
                DECODE,
            ),
        ],
        goal: speed(1.4),
    },
    Work {
        name: "start-smollm2",
        title: "start to first token, SmolLM2-135M, bf16, a prompt of 5 tokens",
        ours: ours("generate --model MODELS/smollm2-135m --max-tokens 1 --prompt PROMPT", Reading::FirstOutput),
        peers: &[
            llama(
                "llama.cpp, loading and first token without Python's start",
                "MODELS/smol-BF16.gguf --start PROMPT",
                Reading::Time("first_token_seconds"),
            ),
            llama(
                "llama.cpp, the whole process, Python included",
                "MODELS/smol-BF16.gguf --start PROMPT",
                Reading::FirstOutput,
            ),
        ],
        goal: Goal { time: Some(0.7), ..NO_GOAL },
    },
    Work {
        name: "cache",
        title: "decode of 1,024 tokens with the cache; without, 16 tokens about their middle, which takes less than the mean",
        ours: ours("bench --model MODELS/smollm2-135m --prompt 1 --gen 1024 --repeat 1", DECODE),
        peers: &[Subject {
            label: "ours, without cache",
            ..ours("bench --model MODELS/smollm2-135m --prompt 504 --gen 17 --repeat 1 --without-cache", DECODE)
        }],
        goal: speed(10.0),
    },
    Work {
        name: "embed-short",
        title: "256 texts of 12 words, all-MiniLM-L6-v2, `--dtype bf16`",
        ours: ours("bench --model MODELS/all-minilm --dtype bf16 --texts TEXTS/short.txt --repeat 5", TEXTS),
        peers: &[
            torch(
                "sentence-transformers, torch bf16",
                "sentence_transformers_encode.py",
                "MODELS/all-minilm TEXTS/short.txt --dtype bfloat16 --repeat 5",
                TEXTS,
            ),
            torch(
                "torch f32",
                "sentence_transformers_encode.py",
                "MODELS/all-minilm TEXTS/short.txt --dtype float32 --repeat 5",
                TEXTS,
            ),
            torch(
                "ONNX Runtime f32",
                "onnx_encode.py",
                "MODELS/all-minilm MODELS/all-minilm.onnx TEXTS/short.txt --repeat 5",
                TEXTS,
            ),
        ],
        goal: Goal { memory: Some(0.5), ..speed(1.5) },
    },
    Work {
        name: "embed-long",
        title: "64 texts of 150 words, all-MiniLM-L6-v2, `--dtype bf16`",
        ours: ours("bench --model MODELS/all-minilm --dtype bf16 --texts TEXTS/long.txt --repeat 5", TEXTS),
        peers: &[
            torch(
                "sentence-transformers, torch bf16",
                "sentence_transformers_encode.py",
                "MODELS/all-minilm TEXTS/long.txt --dtype bfloat16 --repeat 5",
                TEXTS,
            ),
            torch(
                "torch f32",
                "sentence_transformers_encode.py",
                "MODELS/all-minilm TEXTS/long.txt --dtype float32 --repeat 5",
                TEXTS,
            ),
            torch(
                "ONNX Runtime f32",
                "onnx_encode.py",
                "MODELS/all-minilm MODELS/all-minilm.onnx TEXTS/long.txt --repeat 5",
                TEXTS,
            ),
        ],
        goal: Goal { memory: Some(0.5), ..speed(1.5) },
    },
];

/// The work that is no speed: see [`super::accuracy`].
pub(super) const LOGITS: &str = "logits-smollm2";

impl Reading {
    /// Whether more is better.
    pub(super) fn is_speed(self) -> bool {
        matches!(self, Self::Speed(_))
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            TEXTS => "texts/s",
            Self::Speed(_) => "tok/s",
            Self::Time(_) | Self::FirstOutput => "s",
        }
    }
}
