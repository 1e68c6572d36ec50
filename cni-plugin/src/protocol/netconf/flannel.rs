//! flannel's configuration, and how the node's subnet file completes it (flannel-io/cni-plugin, flannel.go).
//!
//! The stock configuration names almost nothing: the subnet, the MTU and whether to masquerade come from the subnet
//! file that `netd` (or flanneld) writes. [`FlannelConf::delegate`] yields, to the byte, what flannel's own plugin
//! would hand to the bridge plugin; it is what the state file of a Pod holds, so that either plugin can take over. ADD
//! itself reads the user's options and the subnet file, not this text.

use std::path::PathBuf;

use netstate::subnet_file::{DEFAULT_PATH, SubnetFile};
use serde_json::{Map, Value, json};

use super::DEFAULT_STATE_DIR;
use crate::protocol::error::CniError;
use crate::protocol::fields::{Fields, Unknown, unsupported};

/// Where flannel's plugin keeps one file per container.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// The configuration of a plugin that takes its subnet from the subnet file.
#[derive(Debug, Clone)]
pub struct FlannelConf {
    /// Path of the subnet file.
    pub subnet_file: PathBuf,
    /// Directory of flannel's state files.
    pub data_dir: PathBuf,
    /// Directory of this plugin's records.
    pub state_dir: PathBuf,
    /// Options for the bridge, as the user wrote them.
    delegate: Map<String, Value>,
    /// The user's own `ipam` section.
    ipam: Map<String, Value>,
    /// `args` of the runtime: addresses and hardware addresses it asks for.
    args: Option<Value>,
    /// What becomes of fields that nobody takes.
    unknown: Unknown,
}

impl FlannelConf {
    /// Reads the fields of a configuration of type `flannel`.
    ///
    /// # Errors
    /// Code 7 for an invalid value, 2 for a delegate that is no bridge or a field that is not known.
    pub fn parse(mut fields: Fields) -> Result<Self, CniError> {
        let conf = Self {
            subnet_file: path(&mut fields, "subnetFile", DEFAULT_PATH)?,
            data_dir: path(&mut fields, "dataDir", DEFAULT_DATA_DIR)?,
            state_dir: path(&mut fields, "stateDir", DEFAULT_STATE_DIR)?,
            delegate: fields.take_object("delegate")?.map(Fields::rest).unwrap_or_default(),
            ipam: fields.take_object("ipam")?.map(Fields::rest).unwrap_or_default(),
            args: fields.take("args")?,
            unknown: fields.unknown().clone(),
        };
        match conf.delegate.get("type") {
            None => {}
            Some(Value::String(kind)) if kind == "bridge" => {}
            Some(Value::String(kind)) => return Err(unsupported("delegate.type", kind).details("accepted is bridge")),
            Some(other) => return Err(CniError::invalid_field("delegate.type", &other.to_string(), "a text")),
        }
        for key in ["name", "ipam"] {
            if conf.delegate.contains_key(key) {
                let path = format!("delegate.{key}");
                return Err(CniError::invalid_field(
                    &path,
                    "is set",
                    "no such key: it comes from outside the delegate",
                ));
            }
        }
        fields.finish()?;
        Ok(conf)
    }

    /// Reads the fields of a native configuration: bridge options stand at the top, a Pod gets a default route and
    /// hairpin mode unless the user says otherwise.
    ///
    /// # Errors
    /// Code 7 for an invalid value.
    pub fn parse_native(mut fields: Fields) -> Result<Self, CniError> {
        let subnet_file = path(&mut fields, "subnetFile", DEFAULT_PATH)?;
        let data_dir = path(&mut fields, "dataDir", DEFAULT_DATA_DIR)?;
        let state_dir = path(&mut fields, "stateDir", DEFAULT_STATE_DIR)?;
        let ipam = fields.take_object("ipam")?.map(Fields::rest).unwrap_or_default();
        let unknown = fields.unknown().clone();
        let mut delegate = fields.rest();
        set_default(&mut delegate, "isDefaultGateway", || json!(true));
        if !delegate.iter().any(|(key, value)| key.eq_ignore_ascii_case("promiscMode") && *value == json!(true)) {
            set_default(&mut delegate, "hairpinMode", || json!(true));
        }
        Ok(Self { subnet_file, data_dir, state_dir, delegate, ipam, args: None, unknown })
    }

    /// What the bridge plugin's options are read from, at `path`.
    #[must_use]
    pub fn options(&self, path: &str) -> Fields {
        let mut options = self.delegate.clone();
        for key in ["type", "cniVersion", "runtimeConfig"] {
            options.remove(key);
        }
        if let Some(args) = &self.args {
            options.insert("args".to_owned(), args.clone());
        }
        Fields::at(path, options).leaving(&self.unknown)
    }

    /// The user's own `ipam` section, without a type that goes without saying.
    #[must_use]
    pub fn ipam_section(&self) -> Fields {
        Fields::at("ipam", self.ipam.clone()).leaving(&self.unknown)
    }

    /// What flannel's plugin would hand to the bridge plugin: the user's options, completed from `subnet`.
    #[must_use]
    pub fn delegate(
        &self,
        name: &str,
        version: Option<&str>,
        runtime: Option<&Fields>,
        subnet: &SubnetFile,
    ) -> Map<String, Value> {
        let mut delegate = self.delegate.clone();
        set_default(&mut delegate, "type", || json!("bridge"));
        set_default(&mut delegate, "ipMasq", || json!(!subnet.ip_masq));
        set_default(&mut delegate, "mtu", || json!(subnet.mtu));
        set_default(&mut delegate, "isGateway", || json!(true));
        delegate.insert("name".to_owned(), json!(name));
        if let Some(version) = version {
            delegate.insert("cniVersion".to_owned(), json!(version));
        }
        if let Some(runtime) = runtime {
            delegate.insert("runtimeConfig".to_owned(), Value::Object(runtime.clone().rest()));
        }
        if let Some(args) = &self.args {
            delegate.insert("args".to_owned(), args.clone());
        }
        delegate.insert("ipam".to_owned(), Value::Object(self.ipam(subnet)));
        sorted(delegate)
    }

    fn ipam(&self, subnet: &SubnetFile) -> Map<String, Value> {
        let mut ipam = self.ipam.clone();
        set_default(&mut ipam, "type", || json!("host-local"));
        let subnets = subnet.subnet_v4.iter().chain(&subnet.subnet_v6);
        let ranges: Vec<Value> = subnets.map(|subnet| json!([{"subnet": subnet.to_string()}])).collect();
        ipam.insert("ranges".to_owned(), Value::Array(ranges));
        let networks = subnet.networks_v4.iter().chain(&subnet.networks_v6);
        let mut routes = ipam.remove("routes").and_then(|r| r.as_array().cloned()).unwrap_or_default();
        routes.extend(networks.map(|network| json!({"dst": network.to_string()})));
        ipam.insert("routes".to_owned(), Value::Array(routes));
        sorted(ipam)
    }
}

fn path(fields: &mut Fields, key: &str, default: &str) -> Result<PathBuf, CniError> {
    let text = fields.take_text(key)?.filter(|text| !text.is_empty());
    Ok(PathBuf::from(text.as_deref().unwrap_or(default)))
}

fn set_default(map: &mut Map<String, Value>, key: &str, value: impl FnOnce() -> Value) {
    if !map.keys().any(|k| k.eq_ignore_ascii_case(key)) {
        map.insert(key.to_owned(), value());
    }
}

/// Go writes maps sorted by key; so does serde_json unless another crate of the build asks it to keep the order.
fn sorted(map: Map<String, Value>) -> Map<String, Value> {
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;

    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
        FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn conf(value: Value) -> Result<FlannelConf, CniError> {
        FlannelConf::parse(Fields::of(value, "").unwrap())
    }

    fn text(map: Map<String, Value>) -> String {
        Value::Object(map).to_string()
    }

    #[test]
    fn stock_configuration_gives_flannels_delegate_to_the_byte() {
        let stock = conf(json!({"delegate": {"hairpinMode": true, "isDefaultGateway": true}})).unwrap();
        let delegate = stock.delegate("cbr0", Some("0.3.1"), None, &SubnetFile::parse(DUAL).unwrap());
        assert_eq!(
            text(delegate),
            r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fc00:0:0:1::/64"}]],"routes":[{"dst":"10.244.0.0/16"},{"dst":"fc00::/48"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
    }

    #[test]
    fn what_the_user_set_stays_and_his_ranges_give_way() {
        let own = conf(
            json!({"ipam": {"ranges": [[{"subnet": "9.9.9.0/24"}]], "routes": [{"dst": "1.0.0.0/8"}], "dataDir": "/d"},
            "delegate": {"MTU": 1300, "ipMasq": true, "isGateway": false, "bridge": "br0"}}),
        )
        .unwrap();
        let subnet = SubnetFile::parse(
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false",
        )
        .unwrap();
        let delegate = own.delegate("n", Some("1.0.0"), None, &subnet);
        assert_eq!(delegate["MTU"], json!(1300));
        assert!(!delegate.contains_key("mtu"));
        assert_eq!((&delegate["ipMasq"], &delegate["isGateway"]), (&json!(true), &json!(false)));
        assert_eq!(
            delegate["ipam"],
            json!({"type": "host-local", "dataDir": "/d", "ranges": [[{"subnet": "172.7.21.0/24"}]],
                   "routes": [{"dst": "1.0.0.0/8"}, {"dst": "172.7.0.0/16"}]})
        );
    }

    /// The table of flannel's own test `getDelegateIPAM`, and what its documentation adds.
    #[test]
    fn address_management_of_the_delegate_is_flannels() {
        const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24";
        const TWO: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24";
        const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64";
        let v4 = json!([[{"subnet": "10.1.17.0/24"}]]);
        let dst = |network: &str| json!({"dst": network});
        for (own, env, expected) in [
            (
                json!({"type": "some-ipam"}),
                V4.to_owned(),
                json!({"type": "some-ipam", "ranges": v4, "routes": [dst("10.1.0.0/16")]}),
            ),
            (json!({}), V4.to_owned(), json!({"type": "host-local", "ranges": v4, "routes": [dst("10.1.0.0/16")]})),
            (
                json!({}),
                TWO.to_owned(),
                json!({"type": "host-local", "ranges": v4, "routes": [dst("10.1.0.0/16"), dst("192.168.0.0/16")]}),
            ),
            (
                json!({"routes": [dst("172.16.0.0/12")]}),
                V4.to_owned(),
                json!({"type": "host-local", "ranges": v4, "routes": [dst("172.16.0.0/12"), dst("10.1.0.0/16")]}),
            ),
            (
                json!({"ranges": [[{"subnet": "9.9.9.0/24"}]], "dataDir": "/d", "resolvConf": "/r"}),
                V4.to_owned(),
                json!({"type": "host-local", "dataDir": "/d", "resolvConf": "/r", "ranges": v4, "routes": [dst("10.1.0.0/16")]}),
            ),
            (
                json!({}),
                V6.to_owned(),
                json!({"type": "host-local", "ranges": [[{"subnet": "fc00::/64"}]], "routes": [dst("fc00::/48")]}),
            ),
            (
                json!({}),
                format!("{V4}\n{V6}"),
                json!({"type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}], [{"subnet": "fc00::/64"}]],
                       "routes": [dst("10.1.0.0/16"), dst("fc00::/48")]}),
            ),
        ] {
            let subnet = SubnetFile::parse(&format!("{env}\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true")).unwrap();
            let delegate = conf(json!({"ipam": own})).unwrap().delegate("n", None, None, &subnet);
            assert_eq!(delegate["ipam"], expected, "{env}");
            assert!(!delegate.contains_key("cniVersion"), "none was told");
        }
    }

    #[test]
    fn paths_are_the_users_or_flannels_defaults() {
        let paths = |value| conf(value).map(|conf| (conf.subnet_file, conf.data_dir)).unwrap();
        let (subnet, data) = (PathBuf::from(DEFAULT_PATH), PathBuf::from(DEFAULT_DATA_DIR));
        assert_eq!(paths(json!({})), (subnet.clone(), data.clone()));
        assert_eq!(paths(json!({"subnetFile": "", "dataDir": null})), (subnet.clone(), data.clone()));
        assert_eq!(paths(json!({"subnetFile": "/a"})), ("/a".into(), data));
        assert_eq!(paths(json!({"DATADIR": "/b"})), (subnet, "/b".into()));
        assert_eq!(paths(json!({"subnetFile": "/a", "dataDir": "/b"})), ("/a".into(), "/b".into()));
    }

    #[test]
    fn runtime_config_reaches_the_delegate() {
        let runtime = Fields::of(json!({"mac": "02:00:00:00:00:01"}), "runtimeConfig").unwrap();
        let delegate =
            conf(json!({})).unwrap().delegate("n", Some("1.0.0"), Some(&runtime), &SubnetFile::parse(DUAL).unwrap());
        assert_eq!(delegate["runtimeConfig"], json!({"mac": "02:00:00:00:00:01"}));
    }

    #[test]
    fn native_configuration_needs_no_options() {
        let native = FlannelConf::parse_native(Fields::of(json!({}), "").unwrap()).unwrap();
        let delegate = native.delegate("cbr0", Some("1.0.0"), None, &SubnetFile::parse(DUAL).unwrap());
        assert_eq!(
            (&delegate["isDefaultGateway"], &delegate["hairpinMode"], &delegate["mtu"]),
            (&json!(true), &json!(true), &json!(1450))
        );
        let promiscuous = FlannelConf::parse_native(Fields::of(json!({"promiscMode": true}), "").unwrap()).unwrap();
        assert!(!promiscuous.delegate.contains_key("hairpinMode"));
    }

    #[test]
    fn delegates_that_cannot_be_obeyed_are_refused() {
        for (value, code) in [
            (json!({"delegate": {"type": "macvlan"}}), Code::UnsupportedField),
            (json!({"delegate": {"type": 7}}), Code::InvalidConfig),
            (json!({"delegate": {"name": "x"}}), Code::InvalidConfig),
            (json!({"delegate": {"ipam": {}}}), Code::InvalidConfig),
            (json!({"delegate": []}), Code::InvalidConfig),
            (json!({"subnetfile2": "/x"}), Code::UnsupportedField),
        ] {
            assert_eq!(conf(value.clone()).unwrap_err().code, code, "{value}");
        }
    }
}
