//! Token ids to text, one id at a time. Knows nothing about stop strings.

use tokenizers::DecoderWrapper;

use crate::{Error, Result, Tokenizer};

/// Turns ids that come one by one into text, each piece as soon as it is certain.
///
/// The pieces together are [`Tokenizer::decode`] of all ids, but for a character that never became complete: its bytes
/// are held back and not replaced. No piece splits a character. The work per id does not grow with the text.
///
/// One more difference, in byte-fallback vocabularies only: where bytes are no UTF-8, `decode` replaces the whole run of
/// byte tokens, these pieces only the bytes at fault, since the others were text before that was known.
///
/// ```
/// # let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen");
/// let tokenizer = mc_text::Tokenizer::load(directory)?;
/// let mut detokenizer = tokenizer.detokenizer(true);
/// let mut text = String::new();
/// for id in tokenizer.encode("one 😀 at a time", false)? {
///     if let Some(piece) = detokenizer.push(id)? {
///         assert!(!piece.contains('\u{fffd}'));
///         text += &piece;
///     }
/// }
/// assert_eq!(text, "one 😀 at a time");
/// # Ok::<(), mc_text::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    scheme: Scheme,
    /// The last id that had a text of its own: what comes after it may depend on it.
    context: Option<u32>,
    /// Whether any id had text or bytes: decoders treat the first token apart.
    started: bool,
    /// Bytes that do not make a character yet.
    bytes: Vec<u8>,
}

/// How the tokens of a vocabulary spell bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scheme {
    /// Every token is a string of bytes, each written as one printable character (GPT-2, Llama 3, Qwen).
    ByteLevel,
    /// Tokens are text, but `<0xE2>` and its like are single bytes (Llama 2, Mistral).
    ByteFallback,
    /// Tokens are text.
    Text,
}

impl Detokenizer {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let scheme = tokenizer.inner().get_decoder().map_or(Scheme::Text, scheme);
        Self { tokenizer, skip_special, scheme, context: None, started: false, bytes: Vec::new() }
    }

    /// Takes the next id; gives the text that is certain now, if there is any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Ok(None);
        };
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        match self.scheme {
            Scheme::ByteLevel => match byte_level(&token) {
                Some(bytes) => self.bytes.extend(bytes),
                // An added token with characters outside the byte alphabet is plain text.
                None => self.bytes.extend(token.as_bytes()),
            },
            // The first byte of all goes the other way if it is a character: it may be a space that is to be stripped.
            Scheme::ByteFallback => match single_byte(&token).filter(|byte| self.started || !byte.is_ascii()) {
                Some(byte) => {
                    self.bytes.push(byte);
                    self.context = None;
                }
                None => self.push_text(id)?,
            },
            Scheme::Text => self.push_text(id)?,
        }
        self.started = true;
        Ok(Some(take_complete(&mut self.bytes)).filter(|text| !text.is_empty()))
    }

    /// Ends the text and forgets an incomplete character, so that the next id starts a new text.
    ///
    /// There is never text left to give: whatever is certain came from [`push`](Self::push) at once.
    pub fn reset(&mut self) {
        self.context = None;
        self.started = false;
        self.bytes.clear();
    }

    /// Whether the last ids are the start of a character.
    pub fn is_incomplete(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Adds what `id` adds to the text of the token before it.
    fn push_text(&mut self, id: u32) -> Result<()> {
        let context = match self.context {
            Some(context) => Some(context),
            // After a byte the token stands in the middle of the text, so give it something to stand after.
            None if self.started => self.anchor(),
            None => None,
        };
        let before = self.tokenizer.decode(context.as_slice(), false)?;
        let both: Vec<u32> = context.into_iter().chain([id]).collect();
        let text = self.tokenizer.decode(&both, false)?;
        let added = text.strip_prefix(before.as_str()).ok_or_else(|| Error::Decode {
            file: self.tokenizer.file().to_path_buf(),
            reason: format!("token {id} changes the text of the token before it"),
        })?;
        self.bytes.extend(added.as_bytes());
        self.context = Some(id);
        Ok(())
    }

    /// A byte token with a character of its own.
    fn anchor(&self) -> Option<u32> {
        self.tokenizer.token_to_id("<0x41>")
    }
}

/// Takes the characters off the front of `bytes`; sequences that no further byte can mend become U+FFFD, as in
/// [`String::from_utf8_lossy`], and the start of a character stays.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = taken + invalid.len() == bytes.len();
        let incomplete = || std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if invalid.is_empty() || (at_end && incomplete()) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    bytes.drain(..taken);
    text
}

fn scheme(decoder: &DecoderWrapper) -> Scheme {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Scheme::ByteLevel,
        DecoderWrapper::ByteFallback(_) => Scheme::ByteFallback,
        DecoderWrapper::Sequence(sequence) => {
            let parts = || sequence.get_decoders().iter().map(scheme);
            parts().find(|&part| part != Scheme::Text).unwrap_or(Scheme::Text)
        }
        _ => Scheme::Text,
    }
}

/// The byte that a byte-fallback token stands for.
fn single_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// The bytes of a byte-level token. GPT-2's alphabet: printable Latin-1 stands for itself, and the other 68 bytes, in
/// order, for the characters from U+0100 on.
fn byte_level(token: &str) -> Option<Vec<u8>> {
    token
        .chars()
        .map(|c| match c as u32 {
            code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
            code @ 0x100..=0x120 => Some((code - 0x100) as u8),
            code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
            0x143 => Some(0xad),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_the_library_s() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<u8> = alphabet.iter().flat_map(|c| byte_level(&c.to_string()).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_level("Ġhi"), Some(b" hi".to_vec()));
        assert_eq!(byte_level("ĊĠ"), Some(b"\n ".to_vec()));
    }

    #[test]
    fn only_what_can_still_become_a_character_is_kept() {
        let check = |input: &[u8], text: &str, kept: &[u8]| {
            let mut bytes = input.to_vec();
            assert_eq!((take_complete(&mut bytes).as_str(), bytes.as_slice()), (text, kept), "{input:x?}");
        };
        check("aé".as_bytes(), "aé", b"");
        check(b"a\xf0\x9f\x98", "a", b"\xf0\x9f\x98");
        check(b"\xf0\x9f\x98a\xe2", "\u{fffd}a", b"\xe2");
        check(b"\xff", "\u{fffd}", b"");
        check(b"\xed\xa0", "\u{fffd}\u{fffd}", b"");
        check(b"", "", b"");
    }
}
