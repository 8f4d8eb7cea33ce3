//! Which paths a configuration means, by PEFT's rules. Knows paths, no tensors.

use crate::{Error, LoRAAdapterConfig, LoRAConfig, Result, TargetModule};
use fancy_regex::Regex;
use mc_models::Site;

/// Parts of a model that PEFT could adapt by name and this version cannot.
const UNSUPPORTED: [&str; 2] = ["lm_head", "model.embed_tokens"];

/// A configuration's targets and patterns, compiled.
pub(crate) struct Targets<'a> {
    config: &'a LoRAAdapterConfig,
    include: Matcher,
    exclude: Matcher,
    layer_patterns: Vec<Pattern>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl<'a> Targets<'a> {
    /// Checks the configuration and compiles its patterns.
    pub(crate) fn new(config: &'a LoRAAdapterConfig) -> Result<Self> {
        config.check()?;
        let pattern = |field, pattern: &str| Pattern::new(field, pattern, |p| format!(r"^(?:.*\.)?(?:{p})$"));
        let layer_patterns = if config.layers_pattern.is_empty() {
            // The first number, which is the layer's: experts inside a layer have numbers too.
            vec![Pattern::new("layers_pattern", "", |_| r"^.*?\.[^.]*\.(?<layer>\d+)\.".into())?]
        } else {
            let compile =
                |p: &String| Pattern::new("layers_pattern", p, |p| format!(r"^(?:.*?\.)?(?:{p})\.(?<layer>\d+)\."));
            config.layers_pattern.iter().map(compile).collect::<Result<_>>()?
        };
        Ok(Self {
            include: Matcher::new("target_modules", &config.target_modules)?,
            exclude: Matcher::new("exclude_modules", &config.exclude_modules)?,
            layer_patterns,
            ranks: config
                .rank_pattern
                .iter()
                .map(|(p, r)| Ok((pattern("rank_pattern", p)?, *r)))
                .collect::<Result<_>>()?,
            alphas: config
                .alpha_pattern
                .iter()
                .map(|(p, a)| Ok((pattern("alpha_pattern", p)?, *a)))
                .collect::<Result<_>>()?,
            config,
        })
    }

    /// For each site the settings of the adapter there, `None` where there is to be none.
    ///
    /// # Errors
    /// If there is none at all, or a target is a part of the model that cannot be adapted.
    pub(crate) fn select(&self, sites: &[Site]) -> Result<Vec<Option<LoRAConfig>>> {
        for name in UNSUPPORTED {
            if self.include.meets_head(name)? && !self.exclude.matches(name)? {
                let name = name.rsplit('.').next().unwrap_or(name).into();
                return Err(Error::Unsupported { field: "target_modules", name, available: names(sites) });
            }
        }
        let at = |site: &Site| self.contains(&site.path)?.then(|| self.layer(&site.path)).transpose();
        let selected = sites.iter().map(at).collect::<Result<Vec<_>>>()?;
        if selected.iter().all(Option::is_none) {
            self.all_matched(sites)?;
            let problem = "leaves no projection after `exclude_modules` and `layers_to_transform`";
            return Err(Error::config("target_modules", problem));
        }
        Ok(selected)
    }

    /// Whether every name, layer and pattern of the configuration means something in the model.
    ///
    /// # Errors
    /// If one does not, listing what there is.
    pub(crate) fn all_matched(&self, sites: &[Site]) -> Result<()> {
        let unmatched = |field, name: String, what, available| Err(Error::Unmatched { field, name, what, available });
        for target in &self.config.target_modules {
            let matcher = Matcher::new("target_modules", std::slice::from_ref(target))?;
            if !any(sites, |path| matcher.matches(path))? {
                return unmatched("target_modules", target.to_string(), "projections", names(sites));
            }
        }
        for layer in self.config.layers_to_transform.iter().flatten() {
            let layers = sites.iter().map(|s| self.layer_index(&s.path)).collect::<Result<Vec<_>>>()?;
            if !layers.contains(&Some(*layer)) {
                let mut available: Vec<_> = layers.into_iter().flatten().collect();
                available.sort_unstable();
                available.dedup();
                let available = available.iter().map(usize::to_string).collect();
                return unmatched("layers_to_transform", layer.to_string(), "layers", available);
            }
        }
        let ranks = self.ranks.iter().map(|(pattern, _)| ("rank_pattern", pattern));
        let alphas = self.alphas.iter().map(|(pattern, _)| ("alpha_pattern", pattern));
        for (field, pattern) in ranks.chain(alphas) {
            if !any(sites, |path| pattern.is_match(path))? {
                return unmatched(field, pattern.text.clone(), "projections", names(sites));
            }
        }
        Ok(())
    }

    fn contains(&self, path: &str) -> Result<bool> {
        if self.exclude.matches(path)? || !self.include.matches(path)? {
            return Ok(false);
        }
        match &self.config.layers_to_transform {
            // A target that is the whole path means that one projection, whatever its layer.
            Some(layers) if !layers.is_empty() && !self.include.names_exactly(path) => {
                Ok(self.layer_index(path)?.is_some_and(|index| layers.contains(&index)))
            }
            _ => Ok(true),
        }
    }

    fn layer(&self, path: &str) -> Result<LoRAConfig> {
        let mut config = self.config.layer();
        if let Some(rank) = first(&self.ranks, path)? {
            config.rank = rank;
        }
        if let Some(alpha) = first(&self.alphas, path)? {
            config.alpha = alpha;
        }
        Ok(config)
    }

    fn layer_index(&self, path: &str) -> Result<Option<usize>> {
        for pattern in &self.layer_patterns {
            if let Some(digits) = pattern.capture(path, "layer")? {
                return Ok(digits.parse().ok());
            }
        }
        Ok(None)
    }
}

/// The last parts of the paths, each once, in the model's order: `q_proj`, `k_proj`, ….
pub(crate) fn names(sites: &[Site]) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    for name in sites.iter().filter_map(|site| site.path.rsplit('.').next()) {
        if !names.iter().any(|n| n == name) {
            names.push(name.into());
        }
    }
    names
}

fn any(sites: &[Site], matches: impl Fn(&str) -> Result<bool>) -> Result<bool> {
    for site in sites {
        if matches(&site.path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn first<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.is_match(path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

enum Matcher {
    All,
    Names(Vec<String>),
    Regex(Pattern),
}

impl Matcher {
    /// Of targets that were checked: names, or one that is not a name.
    fn new(field: &'static str, targets: &[TargetModule]) -> Result<Self> {
        Ok(match targets {
            [TargetModule::AllLinear] => Self::All,
            [TargetModule::Regex(pattern)] => Self::Regex(Pattern::new(field, pattern, |p| format!("^(?:{p})$"))?),
            names => Self::Names(names.iter().filter_map(|t| t.name()).map(Into::into).collect()),
        })
    }

    fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Self::All => Ok(true),
            Self::Names(names) => {
                let ends = |name: &String| path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                Ok(self.names_exactly(path) || names.iter().any(ends))
            }
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }

    fn names_exactly(&self, path: &str) -> bool {
        matches!(self, Self::Names(names) if names.iter().any(|name| name == path))
    }

    /// As [`Matcher::matches`], for a part that `all-linear` leaves out.
    fn meets_head(&self, name: &str) -> Result<bool> {
        if matches!(self, Self::All) { Ok(false) } else { self.matches(name) }
    }
}

/// A regular expression of a configuration, which may look around as Python's can.
struct Pattern {
    field: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    fn new(field: &'static str, text: &str, anchored: impl Fn(&str) -> String) -> Result<Self> {
        let compile = |text: &str| {
            // The library draws a marker under the place of the error on lines of its own.
            let line = |e: fancy_regex::Error| e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            Regex::new(text).map_err(|e| Error::config(field, format!("is no regular expression: {}", line(e))))
        };
        // Alone first, so that a stray parenthesis cannot close the anchoring group.
        compile(text)?;
        Ok(Self { field, text: text.into(), regex: compile(&anchored(text))? })
    }

    fn is_match(&self, path: &str) -> Result<bool> {
        self.regex.is_match(path).map_err(|e| self.failed(&e))
    }

    fn capture<'t>(&self, path: &'t str, name: &str) -> Result<Option<&'t str>> {
        let captures = self.regex.captures(path).map_err(|e| self.failed(&e))?;
        Ok(captures.and_then(|c| c.name(name)).map(|m| m.as_str()))
    }

    fn failed(&self, error: &fancy_regex::Error) -> Error {
        Error::config(self.field, format!("`{}`: {error}", self.text))
    }
}
