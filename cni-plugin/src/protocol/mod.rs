//! What the runtime says and what it is answered: environment, configuration, result, error. Pure: text in, values out.

pub(crate) mod args;
pub(crate) mod attachment;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod netconf;
pub(crate) mod range;
pub(crate) mod resolver;
pub(crate) mod result;
pub(crate) mod version;
