//! What an adapter is asked to be: ranks, scales and targets, checked. Knows no model.

use crate::{Error, Result, targets::Targets};
use std::{fmt, str::FromStr};

/// Larger ranks are refused before memory is allocated for them.
const MAX_RANK: usize = 65_536;

/// Settings of a whole adapter; names are PEFT's where users type them.
///
/// ```
/// use mc_lora::{LoRAAdapterConfig, TargetModule};
/// let config = LoRAAdapterConfig { rank: 4, target_modules: vec!["q_proj".parse()?], ..Default::default() };
/// assert_eq!(config.target_modules, [TargetModule::QProj]);
/// config.check()?;
/// # Ok::<(), mc_lora::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoRAAdapterConfig {
    /// Width of the trained bottleneck, 1 to 65536.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`, above 0.
    pub alpha: f64,
    /// Share of a projection's inputs that training drops, at least 0 and below 1.
    pub dropout: f64,
    /// The projections to adapt. A regular expression or `all-linear` stands alone.
    pub target_modules: Vec<TargetModule>,
    /// Projections to leave alone although they are targets: names, or one regular expression.
    pub exclude_modules: Vec<TargetModule>,
    /// The only layers to adapt; goes with names in `target_modules`, and does not touch a target that is a full path.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What the list of layers is called in paths; empty: whatever comes before the first number.
    pub layers_pattern: Vec<String>,
    /// Other ranks for projections whose path, or its end after a dot, matches; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, chosen in the same way.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Divides alpha by `√rank` instead of `rank` (Kalajdzievski, "A Rank Stabilization Scaling Factor", 2023).
    pub use_rslora: bool,
    /// Trains a magnitude per output row too (Liu et al., "DoRA", 2024).
    pub use_dora: bool,
    /// Where the first values of A come from. Not stored with the adapter.
    pub seed: u64,
}

impl Default for LoRAAdapterConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: vec![TargetModule::AllLinear],
            exclude_modules: vec![],
            layers_to_transform: None,
            layers_pattern: vec![],
            rank_pattern: vec![],
            alpha_pattern: vec![],
            use_rslora: false,
            use_dora: false,
            seed: 0,
        }
    }
}

impl LoRAAdapterConfig {
    /// Checks every value that can be checked without a model.
    ///
    /// # Errors
    /// If one is out of its range, or targets are combined that cannot be.
    pub fn check(&self) -> Result<()> {
        self.layer().check("rank", "alpha")?;
        for (pattern, rank) in &self.rank_pattern {
            LoRAConfig { rank: *rank, ..self.layer() }.check("rank_pattern", "alpha").map_err(|e| of(e, pattern))?;
        }
        for (pattern, alpha) in &self.alpha_pattern {
            LoRAConfig { alpha: *alpha, ..self.layer() }.check("rank", "alpha_pattern").map_err(|e| of(e, pattern))?;
        }
        if self.target_modules.is_empty() {
            return Err(Error::config("target_modules", "is empty, expected names, a pattern or all-linear"));
        }
        for (field, targets) in [("target_modules", &self.target_modules), ("exclude_modules", &self.exclude_modules)] {
            if let Some(alone) = targets.iter().find(|t| t.name().is_none()).filter(|_| targets.len() > 1) {
                let problem = format!("combines `{alone}` with others, expected it alone or names only");
                return Err(Error::config(field, problem));
            }
        }
        if self.exclude_modules.contains(&TargetModule::AllLinear) {
            return Err(Error::config("exclude_modules", "is all-linear, which leaves nothing to adapt"));
        }
        if self.layers_to_transform.is_some() && self.target_modules.iter().any(|t| t.name().is_none()) {
            let problem = "goes with names in `target_modules`, not with a pattern or all-linear";
            return Err(Error::config("layers_to_transform", problem));
        }
        Targets::compile(self).map(drop)
    }

    /// The settings of a projection that no pattern matches.
    pub(crate) fn layer(&self) -> LoRAConfig {
        let Self { rank, alpha, dropout, use_rslora, use_dora, .. } = *self;
        LoRAConfig { rank, alpha, dropout, use_rslora, use_dora }
    }
}

fn of(error: Error, pattern: &str) -> Error {
    match error {
        Error::Config { field, problem } => Error::Config { field, problem: format!("for `{pattern}` {problem}") },
        other => other,
    }
}

/// Settings of the adapter at one projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoRAConfig {
    /// Width of the trained bottleneck, 1 to 65536.
    pub rank: usize,
    /// Numerator of the scale, above 0.
    pub alpha: f64,
    /// Share of the inputs that training drops, at least 0 and below 1.
    pub dropout: f64,
    /// Whether the scale is `alpha / √rank`.
    pub use_rslora: bool,
    /// Whether a magnitude per output row is trained too.
    pub use_dora: bool,
}

impl Default for LoRAConfig {
    fn default() -> Self {
        LoRAAdapterConfig::default().layer()
    }
}

impl LoRAConfig {
    /// What `B·A` is multiplied with: `alpha / rank`, or `alpha / √rank` with rsLoRA.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    pub(crate) fn check(&self, rank: &'static str, alpha: &'static str) -> Result<()> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return Err(Error::config(rank, format!("is {}, expected 1 to {MAX_RANK}", self.rank)));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::config(alpha, format!("is {}, expected a number above 0", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", format!("is {}, expected at least 0 and below 1", self.dropout)));
        }
        Ok(())
    }
}

/// Projections to adapt.
///
/// ```
/// use mc_lora::TargetModule;
/// assert_eq!("all-linear".parse::<TargetModule>()?, TargetModule::AllLinear);
/// assert_eq!("q_proj".parse::<TargetModule>()?.to_string(), "q_proj");
/// assert!(matches!(r".*\.[02]\.mlp\..*".parse()?, TargetModule::Regex(_)));
/// # Ok::<(), mc_lora::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModule {
    /// Every projection inside the blocks.
    AllLinear,
    /// `q_proj`
    QProj,
    /// `k_proj`
    KProj,
    /// `v_proj`
    VProj,
    /// `o_proj`
    OProj,
    /// `gate_proj`
    GateProj,
    /// `up_proj`
    UpProj,
    /// `down_proj`
    DownProj,
    /// A path, or its end after a dot.
    Name(String),
    /// A regular expression that the whole path matches.
    Regex(String),
}

const KNOWN: [(&str, TargetModule); 7] = [
    ("q_proj", TargetModule::QProj),
    ("k_proj", TargetModule::KProj),
    ("v_proj", TargetModule::VProj),
    ("o_proj", TargetModule::OProj),
    ("gate_proj", TargetModule::GateProj),
    ("up_proj", TargetModule::UpProj),
    ("down_proj", TargetModule::DownProj),
];

impl TargetModule {
    /// A target by name: the variant of that name if there is one.
    pub fn named(name: &str) -> Self {
        KNOWN.into_iter().find(|(n, _)| *n == name).map_or_else(|| Self::Name(name.into()), |(_, known)| known)
    }

    /// The name, if it is a name.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::AllLinear | Self::Regex(_) => None,
            Self::Name(name) => Some(name),
            known => KNOWN.iter().find(|(_, k)| k == known).map(|(name, _)| *name),
        }
    }
}

impl FromStr for TargetModule {
    type Err = Error;

    /// `all-linear`, a name, or, if it has characters that no name has, a regular expression.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::config("target_modules", "has an empty name"));
        }
        if text.eq_ignore_ascii_case("all-linear") {
            return Ok(Self::AllLinear);
        }
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        Ok(if text.chars().all(plain) { Self::named(text) } else { Self::Regex(text.into()) })
    }
}

impl fmt::Display for TargetModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regex(pattern) => f.write_str(pattern),
            other => f.write_str(other.name().unwrap_or("all-linear")),
        }
    }
}
