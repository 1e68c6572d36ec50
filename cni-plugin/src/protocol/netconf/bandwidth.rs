//! BandwidthConf of a Pod's traffic: the four keys of the CNI bandwidth plugin (plugins/meta/bandwidth), which stand in the
//! configuration itself or come as `runtimeConfig.bandwidth`.
//!
//! Rates are bits per second and bursts bits. Runtimes that know only a rate send the largest burst they can think of:
//! containerd 2^32 - 1 bits, CRI-O 2^35 - 9. Invariant: a [`BandwidthConf`] holds what the kernel can do.

use netstate::TokenBucket;
use netstate::qdisc::NoBucket;

use crate::protocol::error::CniError;
use crate::protocol::fields::{Fields, unsupported};

/// How fast a Pod may receive and send; `None` is as fast as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BandwidthConf {
    /// What the Pod receives (ingress).
    pub receive: Option<TokenBucket>,
    /// What the Pod sends (egress).
    pub send: Option<TokenBucket>,
}

impl BandwidthConf {
    /// Takes the four keys out of `fields`; `None` when none of them stands there. Zeros mean no limit, and yet that
    /// the configuration has spoken.
    ///
    /// # Errors
    /// Code 7 for a value that is no limit, 2 for exceptions by subnet.
    pub fn take(fields: &mut Fields) -> Result<Option<Self>, CniError> {
        for key in ["unshapedSubnets", "shapedSubnets"] {
            if let Some(subnet) = fields.take_texts(key)?.first() {
                return Err(unsupported(&fields.path_of(key), subnet));
            }
        }
        let (receive, send) =
            (limit(fields, "ingressRate", "ingressBurst")?, limit(fields, "egressRate", "egressBurst")?);
        let conf = Self { receive: receive.flatten(), send: send.flatten() };
        Ok((receive.is_some() || send.is_some()).then_some(conf))
    }

    /// Reads `runtimeConfig.bandwidth`.
    ///
    /// # Errors
    /// As [`BandwidthConf::take`], and code 2 for a key that nobody knows.
    pub fn of_runtime(runtime: &mut Fields) -> Result<Option<Self>, CniError> {
        let Some(mut fields) = runtime.take_object("bandwidth")? else { return Ok(None) };
        let conf = Self::take(&mut fields)?;
        fields.finish().map(|()| conf)
    }

    /// True when nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Bytes of a burst must fit 32 bits.
const BURST_MAX: u64 = 8 * 0xffff_ffff - 1;

/// The outer `None`: neither key stands there.
fn limit(fields: &mut Fields, rate_key: &str, burst_key: &str) -> Result<Option<Option<TokenBucket>>, CniError> {
    let (rate_path, burst_path) = (fields.path_of(rate_key), fields.path_of(burst_key));
    let rate = fields.take_number(rate_key, u64::MAX)?;
    let burst = fields.take_number(burst_key, BURST_MAX)?;
    let bits = match (rate.unwrap_or(0), burst.unwrap_or(0)) {
        (0, 0) => return Ok((rate.is_some() || burst.is_some()).then_some(None)),
        (_, 0) => {
            return Err(CniError::invalid_field(
                &burst_path,
                "if rate is set, burst must also be set",
                "a number of bits",
            ));
        }
        (0, _) => {
            let accepted = "a number of bits per second";
            return Err(CniError::invalid_field(&rate_path, "if burst is set, rate must also be set", accepted));
        }
        bits => bits,
    };
    match TokenBucket::new(bits.0 / 8, bits.1 / 8) {
        Ok(bucket) => Ok(Some(Some(bucket))),
        Err(NoBucket::NoRate) => {
            Err(CniError::invalid_field(&rate_path, &bits.0.to_string(), "8 bits per second or more"))
        }
        Err(NoBucket::BurstTooSmall) => Err(CniError::invalid_field(
            &burst_path,
            &bits.1.to_string(),
            "8 bits or more, and as many as the rate lets pass in some microseconds",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::{Value, json};

    fn take(value: Value) -> Result<Option<BandwidthConf>, CniError> {
        let mut fields = Fields::of(value, "").unwrap();
        let conf = BandwidthConf::take(&mut fields)?;
        fields.finish().map(|()| conf)
    }

    #[test]
    fn bits_become_bytes_for_each_direction() {
        let both = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16, "egressBurst": 8});
        let conf = take(both).unwrap().unwrap();
        assert_eq!(conf.receive, Some(TokenBucket { rate: 1_000_000, depth: 100_000, limit: 125_000 }));
        assert_eq!(conf.send, Some(TokenBucket { rate: 2, depth: 500_000, limit: 1 }));
        let one = take(json!({"EgressRate": 16.0, "egressburst": 8})).unwrap().unwrap();
        assert!(one.receive.is_none() && one.send.is_some());
        assert_eq!(take(json!({})).unwrap(), None);
        let zero = json!({"ingressRate": 0, "ingressBurst": 0});
        assert!(take(zero).unwrap().unwrap().is_none(), "the configuration has spoken: no limit");
    }

    #[test]
    fn both_spellings_and_the_bursts_of_both_runtimes_are_read() {
        let containerd = json!({"bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64,
                                              "EgressRate": 1_000_000, "EgressBurst": 4_294_967_295_u64}});
        let crio = json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 34_359_738_359_u64,
                                        "egressRate": 1_000_000, "egressBurst": 34_359_738_359_u64}});
        for value in [containerd, crio] {
            let mut runtime = Fields::of(value, "runtimeConfig").unwrap();
            let conf = BandwidthConf::of_runtime(&mut runtime).unwrap().unwrap();
            assert_eq!(conf.receive, conf.send);
            assert_eq!(conf.send.unwrap().rate, 125_000);
            assert!(runtime.is_empty());
        }
    }

    #[test]
    fn what_is_no_limit_is_refused_in_the_references_words() {
        for (value, code, text) in [
            (json!({"ingressRate": 8}), Code::InvalidConfig, "ingressBurst: if rate is set, burst must also be set"),
            (json!({"egressBurst": 8}), Code::InvalidConfig, "egressRate: if burst is set, rate must also be set"),
            (json!({"egressRate": -8, "egressBurst": 8}), Code::InvalidConfig, "egressRate: -8"),
            (
                json!({"egressRate": 8, "egressBurst": 34_359_738_360_u64}),
                Code::InvalidConfig,
                "egressBurst: 34359738360",
            ),
            (json!({"egressRate": 7, "egressBurst": 8}), Code::InvalidConfig, "egressRate: 7"),
            (json!({"egressRate": 80_000_000, "egressBurst": 8}), Code::InvalidConfig, "egressBurst: 8"),
            (json!({"egressRate": "1M", "egressBurst": 8}), Code::InvalidConfig, "egressRate: \"1M\""),
            (json!({"unshapedSubnets": ["10.0.0.0/8"]}), Code::UnsupportedField, "unshapedSubnets=10.0.0.0/8"),
        ] {
            let error = take(value).unwrap_err();
            assert!(error.code == code && error.msg.contains(text), "{error} lacks {text}");
        }
        assert_eq!(take(json!({"shapedSubnets": []})).unwrap(), None);
        let mut odd = Fields::of(json!({"bandwidth": {"rate": 1}}), "runtimeConfig").unwrap();
        assert!(BandwidthConf::of_runtime(&mut odd).unwrap_err().msg.contains("runtimeConfig.bandwidth.rate=1"));
    }
}
