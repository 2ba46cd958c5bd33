//! TLS of a listener: its certificate, which is read again when its files change or on SIGHUP, and the authorities of
//! clients' certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use crate::config::{ListenerConfig, TlsFiles};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a listener has no TLS; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    #[error("cannot use {path}: {reason}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate and the key do not go together, or cannot be served.
    #[error("cannot serve TLS with {path}: {reason}", path = .path.display())]
    Unfit {
        /// The file of the certificate.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A certificate that may be replaced while connections are accepted.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// When files were last changed, and their sizes; what cannot be looked at counts as changed.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Certificate {
    fn open(files: &TlsFiles) -> Result<Certificate, TlsError> {
        Ok(Certificate { files: files.clone(), current: ArcSwap::from(read(files)?) })
    }

    fn stamp(&self) -> Stamp {
        [&self.files.certificate, &self.files.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    /// Reads the files again. Where they are broken, the certificate stays.
    fn renew(&self) {
        let path = self.files.certificate.display();
        match read(&self.files) {
            Ok(new) => {
                self.current.store(new);
                tracing::info!(certificate = %path, "the certificate has been read again");
            }
            Err(error) => {
                tracing::error!(%error, certificate = %path, "the certificate cannot be read again; the old one stays");
            }
        }
    }
}

fn read(files: &TlsFiles) -> Result<Arc<CertifiedKey>, TlsError> {
    let broken = |path: &Path, reason: String| TlsError::File { path: path.to_owned(), reason };
    let chain = certificates(&files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| broken(&files.key, error.to_string()))?;
    let provider = rustls::crypto::ring::default_provider();
    // Which also checks that they belong together.
    let certified = CertifiedKey::from_der(chain, key, &provider);
    let unfit =
        |error: rustls::Error| TlsError::Unfit { path: files.certificate.clone(), reason: error.to_string() };
    certified.map(Arc::new).map_err(unfit)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let broken = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| broken(error.to_string()))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| broken(error.to_string()))?;
    if found.is_empty() { Err(broken("it has no certificate".into())) } else { Ok(found) }
}

/// What accepts TLS on a listener, and its certificate; `None` where it speaks plain HTTP.
pub(super) fn open(listener: &ListenerConfig) -> Result<Option<(TlsAcceptor, Arc<Certificate>)>, TlsError> {
    let Some(files) = &listener.tls else { return Ok(None) };
    let certificate = Arc::new(Certificate::open(files)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unfit = |path: &Path, reason: String| TlsError::Unfit { path: path.to_owned(), reason };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(&files.certificate, error.to_string()))?;
    let builder = match &listener.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| unfit(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unfit(path, error.to_string()))?)
        }
    };
    let mut config = builder.with_cert_resolver(certificate.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some((TlsAcceptor::from(Arc::new(config)), certificate)))
}

/// Reads certificates again when their files change or on SIGHUP; for ever.
pub(super) async fn renew(certificates: Vec<Arc<Certificate>>) {
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut known: Vec<Stamp> = certificates.iter().map(|certificate| certificate.stamp()).collect();
    loop {
        let told = async {
            match &mut hangup {
                Some(signals) => signals.recv().await,
                None => std::future::pending().await,
            }
        };
        let told = tokio::time::timeout(LOOK_EVERY, told).await.is_ok();
        for (certificate, known) in certificates.iter().zip(&mut known) {
            let stamp = certificate.stamp();
            if told || stamp != *known {
                *known = stamp;
                certificate.renew();
            }
        }
    }
}
