//! XLM-RoBERTa, and RoBERTa and CamemBERT, which differ from it in nothing here: BERT with positions that begin after that
//! of padding. Multilingual E5, BGE-M3.

use crate::{
    Result, bert,
    fields::Fields,
    post_norm::{Config, Names},
};

pub(crate) const NAMES: Names = Names { prefixes: &["roberta.", ""], ..bert::NAMES };

pub(crate) fn configure(fields: &Fields, model_type: String) -> Result<Config> {
    Config::bert(fields, model_type)?.after_padding(fields)
}
