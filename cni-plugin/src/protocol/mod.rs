//! What the runtime says and what it is answered: environment, configuration, result, error. Pure: text in, values out.

pub mod args;
pub mod attachment;
pub mod error;
pub mod fields;
pub mod netconf;
pub mod range;
pub mod resolver;
pub mod result;
pub mod version;
