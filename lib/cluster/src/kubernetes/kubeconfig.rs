//! A kubeconfig as a client's configuration: its current context, the cluster and the user of that.
//!
//! Invariants: paths are relative to the kubeconfig's folder; a user who needs another program (`exec`, `auth-provider`) is refused with
//! what is accepted instead, since this program executes none; a token's file counts before its text, as in client-go; no message repeats
//! a line or a value of the file.

use std::path::Path;

use kube::Config;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, KubeconfigError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::access::Access;
use super::material::{Files, Material, authorities, certificates, decoded, encoded, token, url};
use super::proxy;
use crate::certificates::belong_together;

/// Users that are accepted.
const USERS: &str = "accepted: token, tokenFile, client-certificate and client-key (or their -data forms), username and password; \
                     a token of a ServiceAccount is made by `kubectl create token`";

/// Reads the kubeconfig at `path` and the files that it names.
pub(super) fn material(access: &Access, path: &Path) -> Result<Material, String> {
    let mut read = Files::default();
    let text = read.text(path)?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let kubeconfig = Kubeconfig::from_yaml(&text).map_err(|error| unreadable(&error))?;
    let (cluster, user, name) = chosen(&kubeconfig)?;
    if let Some(kind) = needs_a_program(&user) {
        return Err(format!("user {name:?}: `{kind}` runs another program, and this one executes none; {USERS}"));
    }
    let ((cluster, _), (user, fields)) = (without_empty(&cluster)?, without_empty(&user)?);
    // client-go's `defaultServerUrlFor`.
    let is_tls = cluster.certificate_authority.is_some()
        || cluster.certificate_authority_data.is_some()
        || cluster.insecure_skip_tls_verify == Some(true)
        || user.client_certificate.is_some()
        || user.client_certificate_data.is_some();
    let server = access.server.as_ref().or(cluster.server.as_ref()).ok_or("clusters: the cluster has no `server`")?;
    let mut config = Config::new(url(server, is_tls)?);
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or_default();
    config.tls_server_name.clone_from(&cluster.tls_server_name);
    config.proxy_url = proxy::for_server(&config.cluster_url, cluster.proxy_url.as_deref(), &access.environment)?;
    config.root_cert = authority(&cluster, folder, &mut read)?;
    config.auth_info = credentials((user, fields), folder, &mut read)?;
    Ok(Material::new(config, read))
}

/// Where a kubeconfig cannot be read. What stands there is not said, nor around it: it may be a token or a key.
fn unreadable(error: &KubeconfigError) -> String {
    let KubeconfigError::Parse(error) = error else { return error.to_string() };
    let place = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
    format!(
        "cannot be read as a kubeconfig{}: no YAML there, or a value of another type (its text is not repeated, as it may be a \
         credential); a token or password of digits alone stands in quotes",
        place.unwrap_or_default()
    )
}

/// The cluster and the user of the current context, with the user's name.
fn chosen(kubeconfig: &Kubeconfig) -> Result<(Cluster, AuthInfo, String), String> {
    let only = || match kubeconfig.contexts.as_slice() {
        // kubeconfigs of one context are written without naming it.
        [only] => Some(only.name.clone()),
        _ => None,
    };
    let current = kubeconfig.current_context.clone().filter(|name| !name.is_empty()).or_else(only);
    let name = current.ok_or_else(|| {
        let names: Vec<_> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
        format!("current-context: missing; accepted: one of {names:?}")
    })?;
    let context: Context = kubeconfig
        .contexts
        .iter()
        .find(|context| context.name == name)
        .and_then(|context| context.context.clone())
        .ok_or_else(|| format!("current-context: no context {name:?}"))?;
    let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|cluster| cluster.cluster.clone()).ok_or_else(|| {
        format!("contexts: context {name:?} names the cluster {:?}, which is missing", context.cluster)
    })?;
    // As in client-go: a user that is not there is nobody, and the server says what it thinks of that.
    let name = context.user.unwrap_or_default();
    let user = kubeconfig.auth_infos.iter().find(|user| user.name == name);
    Ok((cluster, user.and_then(|user| user.auth_info.clone()).unwrap_or_default(), name))
}

const fn needs_a_program(user: &AuthInfo) -> Option<&'static str> {
    if user.exec.is_some() {
        Some("exec")
    } else if user.auth_provider.is_some() {
        Some("auth-provider")
    } else {
        None
    }
}

/// Whom the server's certificate must be signed by; the system's authorities when nobody is named.
fn authority(cluster: &Cluster, folder: &Path, read: &mut Files) -> Result<Option<Vec<Vec<u8>>>, String> {
    let field = "certificate-authority";
    let data = data_of(
        field,
        (cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref()),
        folder,
        read,
    )?;
    data.map(|data| authorities(&data).map_err(|error| format!("{field}: {error}"))).transpose()
}

/// Data, or else what the file holds.
fn data_of(
    field: &str,
    (data, file): (Option<&str>, Option<&str>),
    folder: &Path,
    read: &mut Files,
) -> Result<Option<Vec<u8>>, String> {
    if let Some(text) = data.filter(|text| !text.is_empty()) {
        return decoded(&format!("{field}-data"), text).map(Some);
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    read.load(&folder.join(file)).map(Some).map_err(|error| format!("{field}: {error}"))
}

/// A part without the fields that hold an empty text, which client-go takes for none; and what is left of it as JSON.
fn without_empty<T: Serialize + DeserializeOwned>(part: &T) -> Result<(T, Value), String> {
    let mut fields = serde_json::to_value(part).map_err(|error| error.to_string())?;
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|_, value| *value != "");
    }
    let part = T::deserialize(&fields).map_err(|error| error.to_string())?;
    Ok((part, fields))
}

/// The user with everything that its files hold.
fn credentials((mut user, fields): (AuthInfo, Value), folder: &Path, read: &mut Files) -> Result<AuthInfo, String> {
    let key = fields.get("client-key-data").and_then(Value::as_str);
    if let Some(file) = user.token_file.take() {
        let text = read.text(&folder.join(&file));
        match text.and_then(|text| token(&text).map_err(|error| format!("{file}: {error}"))) {
            Ok(token) => user.token = Some(token.into()),
            Err(error) if user.token.is_none() => return Err(format!("tokenFile: {error}")),
            Err(_) => {}
        }
    }
    let (certificate_file, key_file) = (user.client_certificate.take(), user.client_key.take());
    let certificate = (user.client_certificate_data.as_deref(), certificate_file.as_deref());
    let certificate = data_of("client-certificate", certificate, folder, read)?;
    let key = data_of("client-key", (key, key_file.as_deref()), folder, read)?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            certificates(&certificate).map_err(|error| format!("client-certificate: {error}"))?;
            // Half of a renewal.
            belong_together(&certificate, &key, "client-certificate")
                .map_err(|error| format!("client-key: {error}"))?;
            user.client_certificate_data = Some(encoded(&certificate));
            user.client_key_data = Some(encoded(&key).into());
            Ok(user)
        }
        (Some(_), None) => Err("client-key: missing, but client-certificate is given".to_owned()),
        (None, Some(_)) => Err("client-certificate: missing, but client-key is given".to_owned()),
        (None, None) => Ok(user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let certified = rcgen::generate_simple_self_signed(vec!["api".to_owned()]).unwrap();
            std::fs::write(dir.path().join("ca.crt"), certified.cert.pem()).unwrap();
            std::fs::write(dir.path().join("client.key"), certified.signing_key.serialize_pem()).unwrap();
            std::fs::write(dir.path().join("token"), "SECRET-WORD\n").unwrap();
            Self(dir)
        }

        fn read(&self, cluster: &str, user: &str) -> Result<Material, String> {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: two\ncontexts:\n\
                 - {{name: one, context: {{cluster: away, user: nobody}}}}\n\
                 - {{name: two, context: {{cluster: here, user: proxy}}}}\nclusters:\n\
                 - {{name: away, cluster: {{server: 'https://10.9.9.9:6443'}}}}\n\
                 - {{name: here, cluster: {{{cluster}}}}}\nusers:\n- {{name: proxy, user: {{{user}}}}}\n"
            );
            self.text(&text, None)
        }

        fn text(&self, text: &str, server: Option<&str>) -> Result<Material, String> {
            let path = self.0.path().join("kubeconfig");
            std::fs::write(&path, text).unwrap();
            let access = Access {
                environment: super::super::access::Environment::default(),
                ..Access::new(path.to_str(), server, "test/1", "rbac.yaml")
            };
            material(&access, &path)
        }
    }

    const SERVER: &str = "server: 'https://10.0.0.1:6443', certificate-authority: ca.crt";

    #[test]
    fn the_current_context_of_several_counts_and_paths_are_relative_to_the_file() {
        let folder = Folder::new();
        let read = folder.read(SERVER, "client-certificate: ca.crt, client-key: client.key").unwrap();
        assert_eq!(read.server(), "https://10.0.0.1:6443");
        assert_eq!(read.config.root_cert.as_ref().map(Vec::len), Some(1));
        assert!(
            read.config.auth_info.client_certificate_data.is_some() && read.config.auth_info.client_key_data.is_some()
        );
        let text = "clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]";
        let only = folder.text(text, Some("https://10.0.0.2:6443")).unwrap();
        assert_eq!(only.server(), "https://10.0.0.2:6443", "the flag's server counts first");
    }

    #[test]
    fn a_kubeconfig_or_a_file_of_it_without_end_is_refused() {
        let folder = Folder::new();
        for (cluster, user) in [
            ("server: 'https://10.0.0.1:6443', certificate-authority: /dev/zero", ""),
            (SERVER, "tokenFile: /dev/zero"),
            (SERVER, "client-certificate: /dev/zero, client-key: client.key"),
        ] {
            let error = folder.read(cluster, user).err().unwrap();
            assert!(error.contains("/dev/zero") && error.contains("more than 1048576 bytes"), "{error}");
        }
        let access = Access::new(Some("/dev/zero"), None, "test/1", "rbac.yaml");
        assert!(material(&access, Path::new("/dev/zero")).err().unwrap().contains("more than 1048576 bytes"));
    }

    #[test]
    fn a_rotated_token_or_certificate_shows() {
        let folder = Folder::new();
        let user = "tokenFile: token, client-certificate: ca.crt, client-key: client.key";
        let first = folder.read(SERVER, user).unwrap();
        assert!(first.is_same(&folder.read(SERVER, user).unwrap()));
        std::fs::write(folder.0.path().join("token"), "another").unwrap();
        let second = folder.read(SERVER, user).unwrap();
        assert!(!first.is_same(&second));
        let other = rcgen::generate_simple_self_signed(vec!["api".to_owned()]).unwrap();
        std::fs::write(folder.0.path().join("ca.crt"), other.cert.pem()).unwrap();
        std::fs::write(folder.0.path().join("client.key"), other.signing_key.serialize_pem()).unwrap();
        assert!(!second.is_same(&folder.read(SERVER, user).unwrap()));
    }

    #[test]
    fn a_server_without_scheme_has_tls_where_client_go_has_it() {
        let folder = Folder::new();
        let (bare, own) = ("server: '10.0.0.1:6443'", "client-certificate: ca.crt, client-key: client.key");
        for (cluster, user, expected) in [
            (format!("{bare}, certificate-authority: ca.crt"), "", "https://10.0.0.1:6443"),
            (format!("{bare}, insecure-skip-tls-verify: true"), "", "https://10.0.0.1:6443"),
            (bare.to_owned(), own, "https://10.0.0.1:6443"),
            (bare.to_owned(), "", "http://10.0.0.1:6443"),
            (format!("{bare}, certificate-authority-data: ''"), "", "http://10.0.0.1:6443"),
            ("server: 'HTTPS://10.0.0.1:6443'".to_owned(), "", "https://10.0.0.1:6443"),
        ] {
            assert_eq!(folder.read(&cluster, user).unwrap().server(), expected, "{cluster} {user}");
        }
        let empty = folder.read(&format!("{SERVER}, tls-server-name: '', proxy-url: ''"), "").unwrap();
        assert_eq!(empty.config.tls_server_name, None);
        assert!(folder.read("server: ''", "").err().unwrap().contains("no `server`"));
    }

    #[test]
    fn a_certificate_of_a_bundle_that_cannot_be_used_is_left_out_as_by_client_go() {
        let folder = Folder::new();
        let path = folder.0.path().join("ca.crt");
        let usable = std::fs::read_to_string(&path).unwrap();
        let section = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let (bent, no_base64) = (section("U0VDUkVULVdPUkQ="), section("U0VD%UkVU"));
        for bundle in [format!("{bent}{usable}"), format!("# a note\n{usable}{no_base64}{usable}{bent}")] {
            std::fs::write(&path, &bundle).unwrap();
            let read = folder.read(SERVER, "token: x").unwrap();
            let expected = bundle.matches(&usable).count();
            assert_eq!(read.config.root_cert.as_ref().map(Vec::len), Some(expected), "{bundle}");
        }
        std::fs::write(&path, bent).unwrap();
        let error = folder.read(SERVER, "token: x").err().unwrap();
        assert!(error.starts_with("certificate-authority: holds no usable certificate"), "{error}");
    }

    #[test]
    fn half_of_a_renewal_is_refused_so_that_what_was_read_before_stays() {
        let folder = Folder::new();
        let user = "client-certificate: client.crt, client-key: client.key";
        std::fs::copy(folder.0.path().join("ca.crt"), folder.0.path().join("client.crt")).unwrap();
        assert!(folder.read(SERVER, user).is_ok());
        let next = rcgen::generate_simple_self_signed(vec!["api".to_owned()]).unwrap();
        std::fs::write(folder.0.path().join("client.crt"), next.cert.pem()).unwrap();
        let error = folder.read(SERVER, user).err().unwrap();
        assert!(error.starts_with("client-key: does not belong to client-certificate"), "{error}");
        std::fs::write(folder.0.path().join("client.key"), next.signing_key.serialize_pem()).unwrap();
        assert!(folder.read(SERVER, user).is_ok());
        std::fs::write(folder.0.path().join("client.key"), "SECRET-WORD").unwrap();
        let error = folder.read(SERVER, user).err().unwrap();
        assert!(error.starts_with("client-key: holds no private key") && !error.contains("SECRET"), "{error}");
    }

    #[test]
    fn an_empty_field_is_none_and_an_empty_token_file_no_token() {
        let folder = Folder::new();
        let user = "token: '', tokenFile: '', username: '', client-certificate: ca.crt, client-key: client.key, client-key-data: ''";
        let read = folder.read(SERVER, user).unwrap().config.auth_info;
        assert!(read.token.is_none() && read.username.is_none());
        let key = serde_json::to_value(&read).unwrap();
        assert_ne!(key["client-key-data"], "");
        assert!(folder.read(SERVER, "client-key-data: ''").is_ok());
        std::fs::write(folder.0.path().join("token"), "\n").unwrap();
        let error = folder.read(SERVER, "tokenFile: token").err().unwrap();
        assert!(error.starts_with("tokenFile: ") && error.ends_with("holds no token"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_of_a_user_is_named_without_a_word_of_it() {
        let folder = Folder::new();
        for user in [
            "token: [SECRET-WORD]",
            "token: {SECRET-WORD: 1}",
            "token: 314159265358979",
            "password: 314159265358979, username: netd",
            "password: 3.14159265358979, username: netd",
            "client-key-data: 314159265358979, client-certificate: ca.crt",
            "client-key-data: SECRET-WORD, client-certificate: ca.crt",
            "client-key-data: U0VDUkVULVdPUkQ=, client-certificate: ca.crt",
            "token: SECRET-WORD, token: SECRET-WORD",
            "token: 'SECRET-WORD",
            "token: \"SECRET-WORD\\q\"",
            "token: *SECRET-WORD",
            "token: !SECRET-WORD x",
            "SECRET-WORD",
            "exec: SECRET-WORD",
            "as-groups: SECRET-WORD",
        ] {
            let Err(error) = folder.read(SERVER, user) else { continue };
            let shown = ["SECRET", "U0VDUk", "31415", "14159"].iter().any(|part| error.contains(part));
            assert!(!shown, "{user} is repeated: {error}");
        }
        let whole = "apiVersion: v1\nkind: Config\nusers:\n- {name: a, user: 'SECRET-WORD, expected b'}\n";
        for text in
            [whole, "SECRET-WORD", "users: SECRET-WORD", "users:\n- SECRET-WORD", "users: [{user: {token: SECRET-WORD"]
        {
            let error = folder.text(text, None).err().unwrap();
            assert!(!error.contains("SECRET"), "{text} is repeated: {error}");
        }
    }

    #[test]
    fn users_who_need_another_program_are_refused_with_what_is_accepted() {
        let folder = Folder::new();
        for (user, kind) in [
            ("exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, interactiveMode: Never}", "`exec`"),
            ("auth-provider: {name: gcp, config: {}}", "`auth-provider`"),
        ] {
            let error = folder.read(SERVER, user).err().unwrap();
            assert!(
                error.contains(kind) && error.contains("accepted: token, tokenFile, client-certificate"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_missing_or_malformed_is_named_by_its_field() {
        let folder = Folder::new();
        for (cluster, user, part) in [
            ("certificate-authority: ca.crt", "", "no `server`"),
            ("server: 'https://x', certificate-authority: absent", "", "certificate-authority: "),
            ("server: 'https://x', certificate-authority-data: '%'", "", "certificate-authority-data: not base64"),
            ("server: 'https://x', certificate-authority: client.key", "", "holds no certificate"),
            (SERVER, "tokenFile: absent", "tokenFile: "),
            (SERVER, "client-certificate: ca.crt", "client-key: missing"),
            (SERVER, "client-key: client.key", "client-certificate: missing"),
        ] {
            let error = folder.read(cluster, user).err().unwrap();
            assert!(error.contains(part) && !error.contains("SECRET"), "{error}");
        }
        let error = folder.text("contexts: [{name: a}, {name: b}]", None).err().unwrap();
        assert_eq!(error, "current-context: missing; accepted: one of [\"a\", \"b\"]");
    }
}
