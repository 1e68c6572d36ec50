//! The seam between what is planned and the rows of the kernel's tables.
//!
//! | module | rows |
//! |---|---|
//! | [`ipvs`] | virtual servers and real servers |
//! | [`table`] | the nft table: what is masqueraded and what is refused |
//! | [`vip`] | the dummy link and its addresses |
//! | [`drain`] | real servers that take no new connections until their old ones have ended |

pub(crate) mod drain;
pub(crate) mod ipvs;
pub(crate) mod table;
pub(crate) mod vip;
