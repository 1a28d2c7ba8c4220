//! How connections are secured: TLS with whose certificates, and who the client is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::failure::Failure;
use super::sasl::{Credentials, Mechanism};

/// Where Debian and its kin keep the certificates that the machine trusts.
const MACHINE_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What every connection of a run has in common; nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Security {
    pub tls: Option<Arc<ClientConfig>>,
    pub credentials: Option<Credentials>,
}

#[derive(clap::Args, Clone, Debug, Default)]
pub struct SecurityArguments {
    /// Speak TLS with the brokers.
    #[arg(long)]
    pub tls: bool,
    /// Certificates (PEM) of those who may vouch for a broker; unless given, those that the machine
    /// trusts.
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub tls_ca: Option<PathBuf>,
    /// Our own certificate (PEM), for brokers that ask for one.
    #[arg(long, value_name = "FILE", requires = "tls", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Show who we are, in this way.
    #[arg(
        long,
        value_enum,
        value_name = "MECHANISM",
        requires = "sasl_user",
        requires = "sasl_password_file"
    )]
    pub sasl_mechanism: Option<Mechanism>,
    /// The user's name.
    #[arg(long, value_name = "NAME", requires = "sasl_mechanism")]
    pub sasl_user: Option<String>,
    /// A file whose first line is the user's password.
    #[arg(long, value_name = "FILE", requires = "sasl_mechanism")]
    pub sasl_password_file: Option<PathBuf>,
}

/// Random bits for one authentication.
pub fn nonce() -> [u8; 24] {
    let mut bits = [0; 24];
    // It fails only where the kernel has no random bits at all; a server then sees zeros twice, and
    // the proof of the password is none the weaker for it.
    let _ = SystemRandom::new().fill(&mut bits);
    bits
}

impl SecurityArguments {
    /// Reads the files.
    pub fn security(&self) -> Result<Security, Failure> {
        let tls = self.tls.then(|| self.config().map(Arc::new)).transpose()?;
        Ok(Security { tls, credentials: self.credentials()? })
    }

    fn config(&self) -> Result<ClientConfig, Failure> {
        let machine = PathBuf::from(MACHINE_CERTIFICATES);
        let path = self.tls_ca.as_ref().unwrap_or(&machine);
        let mut roots = RootCertStore::empty();
        // The machine's file may hold a few that this program cannot use.
        let (taken, _) = roots.add_parsable_certificates(certificates("--tls-ca", path)?);
        if taken == 0 {
            return Err(unusable("--tls-ca", path, "it holds no certificate"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::Failed(format!("TLS: {error}")))?
            .with_root_certificates(roots);
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates("--tls-cert", certificate)?;
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unusable("--tls-key", key, &error.to_string()))?;
        builder
            .with_client_auth_cert(chain, secret)
            .map_err(|error| unusable("--tls-cert", certificate, &error.to_string()))
    }

    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let (Some(mechanism), Some(user), Some(path)) =
            (self.sasl_mechanism, &self.sasl_user, &self.sasl_password_file)
        else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| unusable("--sasl-password-file", path, &error.to_string()))?;
        let password = text.lines().next().unwrap_or_default().to_string();
        if password.is_empty() {
            return Err(unusable("--sasl-password-file", path, "its first line is empty"));
        }
        Ok(Some(Credentials::new(mechanism, user.clone(), password)))
    }
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(option, path, &error.to_string()))
}

fn unusable(option: &str, path: &Path, why: &str) -> Failure {
    Failure::Usage(format!("{option} {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_not_what_they_should_be_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("empty");
        std::fs::write(&file, "\n").expect("written");
        let says =
            |arguments: SecurityArguments| arguments.security().expect_err("refused").to_string();
        let tls = SecurityArguments { tls: true, ..Default::default() };
        let said = says(SecurityArguments { tls_ca: Some(file.clone()), ..tls.clone() });
        assert!(said.ends_with("it holds no certificate"), "{said}");
        let said = says(SecurityArguments { tls_ca: Some(folder.path().join("none")), ..tls });
        assert!(said.starts_with("--tls-ca "), "{said}");
        let said = says(SecurityArguments {
            sasl_mechanism: Some(Mechanism::Plain),
            sasl_user: Some("ann".into()),
            sasl_password_file: Some(file),
            ..Default::default()
        });
        assert!(said.ends_with("its first line is empty"), "{said}");
    }
}
