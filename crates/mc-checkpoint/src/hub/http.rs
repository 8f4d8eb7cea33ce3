//! Requests to the hub: where they may go, who may see the token, what a refusal means. Knows no cache.

use super::HubConfig;
use crate::{Error, Result};
use std::{io::Read, time::Duration};
use ureq::{
    Agent,
    http::{HeaderMap, Response},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

pub(super) struct Client<'a> {
    config: &'a HubConfig,
    agent: Agent,
}

/// An answer with status 200, 206 or 416.
pub(super) struct Reply {
    pub(super) status: u16,
    /// The hub's name for the content.
    pub(super) etag: Option<String>,
    /// Whether that name is the content's SHA-256, in hexadecimal.
    pub(super) is_sha256: bool,
    /// Where in the file the body starts.
    pub(super) start: u64,
    /// The size of the whole file.
    pub(super) total: Option<u64>,
    pub(super) body: Box<dyn Read>,
}

/// Whether another try or the cache may help.
pub(super) enum Failure {
    Unreachable(Error),
    NotFound(Error),
    Refused(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let (Failure::Unreachable(error) | Failure::NotFound(error) | Failure::Refused(error)) = failure;
        error
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(config: &'a HubConfig) -> Self {
        let tls = if cfg!(target_vendor = "apple") {
            TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier)
        } else {
            TlsConfig::builder()
        };
        let agent = Agent::config_builder()
            .user_agent(concat!("metal-candle/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            // By hand, below: the names of the content are on the way.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            .timeout_per_read(Some(Duration::from_mins(1)))
            .build();
        Self { config, agent: agent.into() }
    }

    /// Gets `path` below the endpoint, from byte `start` on if the server can; `what` names it in errors.
    pub(super) fn get(&self, path: &str, start: u64, what: &str) -> Result<Reply, Failure> {
        let endpoint = &self.config.endpoint;
        let mut url = format!("{endpoint}{path}");
        let (mut etag, mut size, mut is_linked) = (None, None, false);
        for _ in 0..10 {
            let at_hub = origin(&url) == origin(endpoint);
            let response = self.send(&url, start, at_hub).map_err(|e| unreachable(&url, &e))?;
            let headers = response.headers();
            if at_hub {
                // Of large files the hub gives name (the SHA-256) and size itself, then sends us to where they are stored.
                let linked = text(headers, "x-linked-etag");
                is_linked |= linked.is_some();
                let name = linked.or_else(|| text(headers, "etag"));
                etag = name.map(|e| e.trim_start_matches("W/").trim_matches('"').to_string()).or(etag);
                size = text(headers, "x-linked-size").and_then(|s| s.parse().ok()).or(size);
            }
            match response.status().as_u16() {
                status @ (200 | 206 | 416) => return Ok(reply(status, etag, is_linked, size, response)),
                301 | 302 | 303 | 307 | 308 => {
                    let location = text(headers, "location").unwrap_or_default();
                    url = redirect(&url, location).ok_or_else(|| {
                        let what = format!("{what}: redirected to `{location}`, which is not followed");
                        Failure::Refused(Error::Hub { what, hint: None })
                    })?;
                }
                status => return Err(self.refused(what, status)),
            }
        }
        Err(Failure::Refused(Error::Hub { what: format!("{what}: too many redirects"), hint: None }))
    }

    fn send(&self, url: &str, start: u64, at_hub: bool) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.config.token.as_ref().filter(|_| at_hub) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        request.call()
    }

    fn refused(&self, what: &str, status: u16) -> Failure {
        let hint = match (status, &self.config.token) {
            (401 | 403, None) => "check the name; if the repository is private or gated, set HF_TOKEN",
            (401 | 403, Some(_)) => "check the name, and that the token in HF_TOKEN may read this repository",
            (404, _) => "check the name and the revision",
            (429 | 500.., _) => "try again later",
            _ => "check HF_ENDPOINT",
        };
        let reason = ureq::http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
        let what = format!("{what}: {} answered {status} {}", self.config.endpoint, reason.unwrap_or_default());
        let (what, hint) = (what.trim_end().to_string(), hint.to_string());
        match status {
            404 => Failure::NotFound(Error::Hub { what, hint: Some(hint) }),
            429 => Failure::Refused(Error::Unreachable { what, hint }),
            500.. => Failure::Unreachable(Error::Unreachable { what, hint }),
            _ => Failure::Refused(Error::Hub { what, hint: Some(hint) }),
        }
    }
}

fn unreachable(url: &str, error: &ureq::Error) -> Failure {
    // Without what follows the path: addresses of stored files are signed.
    let place = origin(url).map_or(url.to_string(), |(scheme, host)| format!("{scheme}://{host}"));
    let hint = "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses only what is in the cache";
    Failure::Unreachable(Error::Unreachable { what: format!("cannot reach {place}: {error}"), hint: hint.into() })
}

fn reply(
    status: u16,
    etag: Option<String>,
    is_linked: bool,
    size: Option<u64>,
    response: Response<ureq::Body>,
) -> Reply {
    let headers = response.headers();
    // `bytes 100-199/200`
    let range = text(headers, "content-range").and_then(|r| r.strip_prefix("bytes "));
    let start = range.and_then(|r| r.split('-').next()?.parse().ok());
    let whole = match status {
        206 => range.and_then(|r| r.split('/').nth(1)?.parse().ok()),
        _ => text(headers, "content-length").and_then(|l| l.parse().ok()),
    };
    let start = start.filter(|_| status == 206).unwrap_or(0);
    let hexadecimal = |e: &String| e.len() == 64 && e.bytes().all(|b| b.is_ascii_hexdigit());
    let is_sha256 = is_linked && etag.as_ref().is_some_and(hexadecimal);
    let body = Box::new(response.into_body().into_reader());
    Reply { status, etag, is_sha256, start, total: size.or(whole), body }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme and host with port, which together decide who gets the token.
fn origin(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    Some((scheme.to_lowercase(), host.to_lowercase()))
}

/// Where a redirect from `url` leads; never from https to http.
fn redirect(url: &str, location: &str) -> Option<String> {
    let (scheme, host) = origin(url)?;
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{scheme}://{host}{location}"));
    }
    let (to, _) = origin(location)?;
    (to == "https" || to == "http" && scheme == "http").then(|| location.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_and_origins() {
        let url = "https://hub.example/a/b?c";
        assert_eq!(redirect(url, "/d?e").unwrap(), "https://hub.example/d?e");
        assert_eq!(redirect(url, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        for refused in ["http://cdn.example/x", "//cdn.example/x", "x", "", "file:///etc/passwd"] {
            assert_eq!(redirect(url, refused), None, "{refused}");
        }
        assert_ne!(origin("https://hub.example@evil.example/"), origin(url));
        assert_ne!(origin("http://hub.example/"), origin(url));
        assert_ne!(origin("https://hub.example:8443/"), origin(url));
        assert_eq!(origin("https://HUB.example#x"), origin(url));
    }
}
