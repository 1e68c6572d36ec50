//! The `portmap` name: chained behind the plugin that made the interface; its result is the previous one, unchanged.

use serde_json::Value;

use crate::error::{CniError, Code};
use crate::fields::unsupported;
use crate::netconf::runtime::Honoured;
use crate::netconf::{NetConf, PortmapConf, RuntimeConfig};

/// ADD: answers the previous result as it came, with keys that nobody here knows.
///
/// # Errors
/// Code 7 without a previous result, 2 when a port shall be opened.
pub fn add(conf: NetConf) -> Result<Value, CniError> {
    PortmapConf::parse(conf.fields)?;
    let runtime = RuntimeConfig::parse(conf.runtime, Honoured { port_mappings: true, attachment: false })?;
    let Some(mut result) = conf.prev_result else {
        return Err(CniError::new(Code::InvalidConfig, "must be called as chained plugin: prevResult is missing"));
    };
    if let Some(mapping) = runtime.port_mappings.first() {
        return Err(unsupported("runtimeConfig.portMappings", &mapping.to_string()));
    }
    if let Value::Object(map) = &mut result {
        // libcni compares it with the configuration's version.
        map.insert("cniVersion".to_owned(), Value::String(conf.version.to_string()));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(extra: Value) -> Result<Value, CniError> {
        let mut conf =
            json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "portmap", "capabilities": {"portMappings": true}});
        conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        add(NetConf::parse(conf.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn previous_result_comes_back_with_keys_nobody_knows() {
        let previous = json!({"cniVersion": "0.3.1", "ips": [], "vendor": {"x": [1, 2]}});
        assert_eq!(call(json!({"prevResult": previous})).unwrap(), previous);
    }

    #[test]
    fn a_port_is_refused_by_name_and_never_ignored() {
        let error =
            call(json!({"prevResult": {}, "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}}))
                .unwrap_err();
        assert_eq!(error.code, Code::UnsupportedField);
        assert!(error.msg.contains("runtimeConfig.portMappings=tcp 80 to 80"), "{error}");
    }

    #[test]
    fn it_must_be_chained() {
        assert!(call(json!({})).unwrap_err().msg.contains("must be called as chained plugin"));
    }
}
