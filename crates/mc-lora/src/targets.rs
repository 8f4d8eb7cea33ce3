//! Which paths a configuration means, by PEFT's rules. Knows paths, no tensors.

use crate::{Error, LoRAAdapterConfig, LoRAConfig, Result, TargetModule};
use fancy_regex::Regex;
use mc_models::Site;
use std::collections::BTreeSet;

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
        Self::compile(config)
    }

    /// Compiles the patterns of a configuration that is right in all else.
    pub(crate) fn compile(config: &'a LoRAAdapterConfig) -> Result<Self> {
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
        if let Some(wanted) = &self.config.layers_to_transform {
            let layers = sites.iter().map(|s| self.layer_index(&s.path)).collect::<Result<BTreeSet<_>>>()?;
            let layers: BTreeSet<_> = layers.into_iter().flatten().collect();
            if layers.is_empty() {
                let path = sites.first().map(|s| s.path.as_str()).unwrap_or_default();
                return Err(Error::config("layers_pattern", format!("is not in the model's paths, such as `{path}`")));
            }
            if let Some(layer) = wanted.iter().find(|layer| !layers.contains(layer)) {
                let available = layers.iter().map(usize::to_string).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    /// Two layers and, in the second, an expert with a number of its own.
    fn sites() -> Vec<Site> {
        let paths = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.v_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.v_proj",
            "model.layers.1.experts.0.up_proj",
        ];
        let site =
            |(index, path): (usize, &&str)| Site { index, path: (*path).into(), in_features: 4, out_features: 3 };
        paths.iter().enumerate().map(site).collect()
    }

    fn parse(targets: &[&str]) -> Vec<TargetModule> {
        targets.iter().map(|t| TargetModule::from_str(t).unwrap()).collect()
    }

    /// The expected indices are those that PEFT 0.21 selects.
    #[test]
    fn selection() {
        let config = |targets: &[&str]| LoRAAdapterConfig { target_modules: parse(targets), ..Default::default() };
        let layers = |targets: &[&str], layers: &[usize]| LoRAAdapterConfig {
            layers_to_transform: Some(layers.to_vec()),
            ..config(targets)
        };
        let without = |targets: &[&str], exclude: &[&str]| LoRAAdapterConfig {
            exclude_modules: parse(exclude),
            ..config(targets)
        };
        let called = |pattern: &str, layer| LoRAAdapterConfig {
            layers_pattern: vec![pattern.into()],
            ..layers(&["up_proj"], &[layer])
        };
        let cases: [(LoRAAdapterConfig, &[usize]); 16] = [
            (config(&["all-linear"]), &[0, 1, 2, 3, 4, 5]),
            (config(&["q_proj", "mlp.up_proj"]), &[0, 2, 3]),
            (config(&["model.layers.1.self_attn.v_proj"]), &[4]),
            (config(&["1.self_attn.v_proj"]), &[4]),
            (config(&[r".*\.(q|v)_proj"]), &[0, 1, 3, 4]),
            (config(&["model.layers.0|model.layers.0.mlp.up_proj.?"]), &[2]),
            (config(&["(?!.*self_attn).*up_proj"]), &[2, 5]),
            (config(&["(?i).*Q_PROJ"]), &[0, 3]),
            (layers(&["q_proj", "up_proj"], &[1]), &[3, 5]),
            (layers(&["q_proj", "up_proj"], &[0]), &[0, 2]),
            (layers(&["q_proj"], &[]), &[0, 3]),
            (layers(&["q_proj", "model.layers.0.mlp.up_proj"], &[1]), &[2, 3]),
            (called("layers", 1), &[5]),
            (called("experts", 0), &[5]),
            (without(&["q_proj", "v_proj"], &["model.layers.0.self_attn.q_proj"]), &[1, 3, 4]),
            (without(&["all-linear"], &[r".*layers\.1.*"]), &[0, 1, 2]),
        ];
        for (config, expected) in cases {
            let selected = Targets::new(&config).unwrap().select(&sites()).unwrap();
            let found: Vec<_> = selected.iter().enumerate().filter_map(|(i, s)| s.map(|_| i)).collect();
            assert_eq!(found, expected, "{config:?}");
        }
    }

    #[test]
    fn the_first_pattern_counts() {
        let config = LoRAAdapterConfig {
            rank_pattern: [("layers.0.self_attn.q_proj", 2), ("q_proj", 3), ("proj", 4), ("q_proj|up_proj", 5)]
                .map(|(p, r)| (p.to_string(), r))
                .into(),
            alpha_pattern: vec![(".*v_proj".into(), 1.0), (r"layers\.1\..*".into(), 2.0)],
            ..Default::default()
        };
        let selected = Targets::new(&config).unwrap().select(&sites()).unwrap();
        let found: Vec<_> = selected.iter().flatten().map(|s| (s.rank, s.alpha)).collect();
        // `proj` is the end of a name but no name after a dot.
        assert_eq!(found, [(2, 16.0), (8, 1.0), (5, 16.0), (3, 2.0), (8, 1.0), (5, 2.0)]);
    }

    #[test]
    fn a_pattern_that_never_ends_is_an_error() {
        let config = LoRAAdapterConfig {
            target_modules: parse(&[r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3x"]),
            ..Default::default()
        };
        let error = Targets::new(&config).unwrap().select(&sites()).unwrap_err().to_string();
        assert!(error.starts_with("`target_modules`"), "{error}");
    }
}
