//! Apache Kafka as one KRaft node in a folder of its own, from the artifacts that `ci/clients` has
//! fetched for the Java tools: a plain listener, and one that wants TLS, a certificate and SASL.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// A user that the node knows, with the password beside it.
pub const USER: (&str, &str) = ("ann", "s3cret");

/// Killed by its id at the end of the test.
pub struct Kafka {
    child: Child,
    pub plain: String,
    pub secure: String,
    pub folder: TempDir,
}

impl Kafka {
    /// `None` where the machine lacks Java or the artifacts, and CI does not insist.
    pub fn start() -> Option<Kafka> {
        let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/java/lib");
        let is_there = fs::read_dir(&jars).is_ok_and(|mut all| {
            all.any(|jar| {
                jar.is_ok_and(|jar| jar.file_name().to_string_lossy().starts_with("kafka_2"))
            })
        });
        let java = Command::new("java").arg("-version").stderr(Stdio::null()).status();
        if !is_there || !java.is_ok_and(|status| status.success()) {
            let insists = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!insists, "no Java, or no Kafka in {}: run ci/clients", jars.display());
            println!("skipped: no Java, or no Kafka in {}", jars.display());
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        certificates(folder.path());
        let [plain, secure, controller] = [(); 3].map(|()| free_port());
        let settings = folder.path().join("server.properties");
        fs::write(&settings, properties(folder.path(), plain, secure, controller))
            .expect("written");
        let run = |main: &str| {
            let mut command = Command::new("java");
            command.args(["-Xmx512m", "-cp", &format!("{}/*", jars.display()), main]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let mut format = run("kafka.tools.StorageTool");
        format.args(["format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c"]).arg(&settings);
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let (name, password) = USER;
            format.args(["--add-scram", &format!("{mechanism}=[name={name},password={password}]")]);
        }
        assert!(format.status().expect("java").success(), "the storage is formatted");
        let child = run("kafka.Kafka").arg(&settings).spawn().expect("java");
        let address = |port| format!("127.0.0.1:{port}");
        let mut kafka = Kafka { child, plain: address(plain), secure: address(secure), folder };
        let patience = Instant::now() + Duration::from_secs(120);
        // It opens its listeners one after the other.
        while !is_listened_at(&kafka.plain) || !is_listened_at(&kafka.secure) {
            assert_eq!(kafka.child.try_wait().expect("a child"), None, "Kafka ended");
            assert!(Instant::now() < patience, "Kafka does not listen");
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(kafka)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // One that has stopped is not killed again; both errors say just that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody has. Nothing listens meanwhile: a process that another test is just starting
/// would hold that listener for a moment, and be taken for Kafka.
fn free_port() -> u16 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    address.expect("bound").port()
}

/// Whether somebody listens at `address`. Linux lets a client's own port be the one that it
/// connects to, if nobody else has it, and gives it a connection to itself.
fn is_listened_at(address: &str) -> bool {
    let stream = TcpStream::connect(address);
    stream.is_ok_and(|stream| stream.local_addr().ok() != stream.peer_addr().ok())
}

/// An authority, a certificate for the node and one for its client, and the password in a file.
fn certificates(folder: &Path) {
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, key()).expect("an authority");
    let write = |name: &str, text: String| fs::write(folder.join(name), text).expect("written");
    write("ca.pem", authority.pem());
    for name in ["server", "client"] {
        let own = key();
        let params = CertificateParams::new(vec!["127.0.0.1".to_string()]).expect("a name");
        let certificate = params.signed_by(&own, &authority).expect("signed");
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), own.serialize_pem());
        // Kafka wants both in one file.
        write(&format!("{name}.both"), own.serialize_pem() + &certificate.pem());
    }
    write("password", format!("{}\n", USER.1));
    write("wrong", "no secret\n".to_string());
}

fn properties(folder: &Path, plain: u16, secure: u16, controller: u16) -> String {
    let (folder, (user, password)) = (folder.display(), USER);
    let security = "org.apache.kafka.common.security";
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAIN://127.0.0.1:{plain},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,SECURE:SASL_SSL
inter.broker.listener.name=PLAIN
controller.listener.names=CONTROLLER
log.dirs={folder}/kafka
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.ssl.client.auth=required
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={folder}/server.both
listener.name.secure.ssl.truststore.type=PEM
listener.name.secure.ssl.truststore.location={folder}/ca.pem
listener.name.secure.plain.sasl.jaas.config={security}.plain.PlainLoginModule required \
         user_{user}=\"{password}\";
listener.name.secure.scram-sha-256.sasl.jaas.config={security}.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config={security}.scram.ScramLoginModule required;
"
    )
}
