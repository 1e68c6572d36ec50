//! `Scheduler`: how a virtual server chooses among its real servers.
//!
//! Text, as in flags and annotations: the kernel's name, and behind it, of the two schedulers that hash, their flags as
//! `ipvsadm --sched-flags` knows them: `rr`, `mh,mh-fallback`, `sh,none`. Invariant: the text of a value is read as that value.

use std::fmt;
use std::str::FromStr;

/// A scheduler with its flags.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheduler {
    /// The kernel's name, under 16 bytes: rr, wrr, lc, wlc, sh, mh, ...
    pub name: String,
    /// What it does differently.
    pub flags: SchedulerFlags,
}

/// Flags of a scheduler; what they mean is its own business (include/uapi/linux/ip_vs.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchedulerFlags(pub u32);

impl SchedulerFlags {
    /// None.
    pub const NONE: Self = Self(0);
    /// `IP_VS_SVC_F_SCHED_SH_FALLBACK`, `IP_VS_SVC_F_SCHED_MH_FALLBACK`: to the next real server where the chosen one takes nothing.
    pub const FALLBACK: Self = Self(0x8);
    /// `IP_VS_SVC_F_SCHED_SH_PORT`, `IP_VS_SVC_F_SCHED_MH_PORT`: the client's port is hashed, not its address alone.
    pub const PORT: Self = Self(0x10);
    /// Every flag that has a meaning.
    pub const ALL: Self = Self(Self::FALLBACK.0 | Self::PORT.0);
}

/// Why a text is no scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidScheduler(String);

impl fmt::Display for InvalidScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no IPVS scheduler: {}", self.0, Scheduler::FORM)
    }
}

impl std::error::Error for InvalidScheduler {}

impl Scheduler {
    /// What its text is like.
    pub const FORM: &str = "the kernel's name, 1 to 15 of a-z, 0-9 and _ (rr, wrr, lc, wlc, sed, nq, ...); behind sh and mh their \
                            flags, as in mh,mh-port,mh-fallback or sh,none";

    /// The flags that it has in text; none of one that has no flags.
    fn known(name: &str) -> &'static [(&'static str, SchedulerFlags)] {
        match name {
            "sh" => &[("sh-fallback", SchedulerFlags::FALLBACK), ("sh-port", SchedulerFlags::PORT)],
            "mh" => &[("mh-fallback", SchedulerFlags::FALLBACK), ("mh-port", SchedulerFlags::PORT)],
            _ => &[],
        }
    }

    /// Flags where the text has none: kube-proxy lets Maglev hashing take the port in.
    fn usual(name: &str) -> SchedulerFlags {
        if name == "mh" { SchedulerFlags::PORT } else { SchedulerFlags::NONE }
    }
}

impl From<String> for Scheduler {
    /// The scheduler of this name, without flags.
    fn from(name: String) -> Self {
        Self { name, flags: SchedulerFlags::NONE }
    }
}

impl FromStr for Scheduler {
    type Err = InvalidScheduler;

    fn from_str(text: &str) -> Result<Self, InvalidScheduler> {
        let invalid = || InvalidScheduler(text.to_owned());
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !(1..=15).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(invalid());
        }
        let known = Self::known(name);
        let words: Vec<&str> = words.collect();
        let flags = match words.as_slice() {
            [] => Self::usual(name),
            ["none"] if !known.is_empty() => SchedulerFlags::NONE,
            words => {
                let flag = |word: &&str| known.iter().find(|(known, _)| known == word).map(|(_, flag)| flag.0);
                let bits: Option<Vec<u32>> = words.iter().map(flag).collect();
                SchedulerFlags(bits.ok_or_else(invalid)?.into_iter().fold(0, |all, bit| all | bit))
            }
        };
        Ok(Self { name: name.to_owned(), flags })
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.flags == Self::usual(&self.name) {
            return Ok(());
        }
        let has = |flag: &SchedulerFlags| self.flags.0 & flag.0 != 0;
        let mut rest = self.flags.0;
        for (word, flag) in Self::known(&self.name).iter().filter(|(_, flag)| has(flag)) {
            rest &= !flag.0;
            write!(f, ",{word}")?;
        }
        match rest {
            0 if self.flags == SchedulerFlags::NONE => f.write_str(",none"),
            0 => Ok(()),
            rest => write!(f, ",0x{rest:x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_is_read_with_its_flags_and_shown_in_the_shortest_form() {
        for (text, name, flags, shown) in [
            ("rr", "rr", SchedulerFlags::NONE, "rr"),
            ("mh", "mh", SchedulerFlags::PORT, "mh"),
            ("mh,mh-port", "mh", SchedulerFlags::PORT, "mh"),
            ("mh,none", "mh", SchedulerFlags::NONE, "mh,none"),
            ("mh,mh-fallback", "mh", SchedulerFlags::FALLBACK, "mh,mh-fallback"),
            ("mh,mh-port,mh-fallback", "mh", SchedulerFlags::ALL, "mh,mh-fallback,mh-port"),
            ("sh", "sh", SchedulerFlags::NONE, "sh"),
            ("sh,none", "sh", SchedulerFlags::NONE, "sh"),
            ("sh,sh-port", "sh", SchedulerFlags::PORT, "sh,sh-port"),
        ] {
            let scheduler: Scheduler = text.parse().unwrap();
            assert_eq!((scheduler.name.as_str(), scheduler.flags), (name, flags), "{text}");
            assert_eq!(scheduler.to_string(), shown);
            assert_eq!(shown.parse(), Ok(scheduler));
        }
    }

    #[test]
    fn what_the_kernel_could_not_have_is_refused() {
        for bad in [
            "",
            "RR",
            "a-scheduler",
            "sixteen_letters_",
            "rr,none",
            "rr,sh-port",
            "mh,sh-port",
            "mh,",
            "mh,mh-port,none",
            " rr",
        ] {
            assert_eq!(bad.parse::<Scheduler>(), Err(InvalidScheduler(bad.to_owned())));
        }
        assert!(
            InvalidScheduler("RR".to_owned()).to_string().starts_with("\"RR\" is no IPVS scheduler: the kernel's name")
        );
    }

    #[test]
    fn a_flag_that_somebody_else_gave_shows() {
        assert_eq!(Scheduler { name: "wlc".to_owned(), flags: SchedulerFlags::PORT }.to_string(), "wlc,0x10");
    }
}
