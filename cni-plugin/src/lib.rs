//! The CNI plugin: one exec per Pod, veth into cbr0 with IPAM and host ports inside.
//!
//! One process serves one verb and ends. It blocks, has one thread, and executes no other program.
//!
//! | module | what it is |
//! |---|---|
//! | [`call`] | one execution: dispatch by verb and [`role`], version gates, the answer |
//! | [`args`], [`netconf`], [`fields`] | what the runtime says: environment, standard input |
//! | [`excerpt`] | files that others wrote, read with care |
//! | [`result`], [`error`], [`version`] | what the runtime is told, in its own version |
//! | [`attachment`], [`record`], [`ipam`] | what belongs to one interface of one container, and where that is kept |
//! | [`install`] | the one command for an operator |
//! | [`detour`] | the device over which what a Pod sends goes, where that is limited |
//! | [`mtu`] | who keeps a former MTU, for the runtime's log |
//! | [`leftovers`], [`former`] | what containers left that nobody deleted, and what the chain before us left of them |
//! | [`plan`] | pure: facts in, ordered steps out |
//! | [`apply`], [`hands`], [`ports`], [`guard`], [`duplicates`], [`carrier`] | steps executed, journaled, unwound; the kernel below |
//! | [`verbs`] | one verb per file: gather facts, plan, apply, answer |

pub mod apply;
pub mod args;
pub mod attachment;
pub mod call;
pub mod carrier;
pub mod detour;
pub mod duplicates;
pub mod error;
pub mod excerpt;
pub mod fields;
pub mod former;
pub mod guard;
pub mod hands;
pub mod install;
pub mod ipam;
pub mod leftovers;
pub mod mtu;
pub mod netconf;
pub mod plan;
pub mod ports;
pub mod record;
pub mod result;
pub mod role;
pub mod verbs;
pub mod version;
