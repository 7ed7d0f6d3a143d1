//! The images of a containerd that runs on this machine, by its own API: what it lists of a namespace, and of each image an
//! OCI image layout, made while it is sent. containerd keeps what it has; nothing is asked to change.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{
    InfoRequest, ListImagesRequest, ListNamespacesRequest, ReadContentRequest,
};
use containerd_client::types::Descriptor;
use hyper::Uri;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::super::connect::{Channel, MAX_MESSAGE};
use super::source::{Pieces, Source, Unread};
use crate::image::{
    Bounds, DOCKER, Documents, INDEX, ImageError, LAYOUT, Outline, named_by, tar, whole_name,
};

/// How long containerd may send nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Carries the namespace of a call (containerd, pkg/namespaces).
const NAMESPACE: &str = "containerd-namespace";
/// By this label and value containerd's CRI marks images that are never collected (KEP-4216's `pinned`).
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// A containerd, in one namespace.
#[derive(Debug)]
pub(super) struct Node {
    channel: Channel,
    address: PathBuf,
    namespace: MetadataValue<Ascii>,
}

/// An image as containerd has it: everything that leads to one digest.
#[derive(Debug)]
pub(super) struct Image {
    names: Vec<String>,
    target: Descriptor,
    pub(super) pinned: bool,
}

impl Image {
    /// For messages.
    pub(super) fn shown(&self) -> String {
        self.names.first().unwrap_or(&self.target.digest).clone()
    }
}

impl Node {
    pub(super) async fn connect(address: &Path, namespace: &str) -> Result<Self, Box<dyn Error>> {
        let at = address.display();
        let stream = UnixStream::connect(address).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("no containerd at {at}: no such socket; --address names another"),
            ErrorKind::ConnectionRefused => format!("no containerd at {at}: nobody listens on this socket"),
            _ => format!("connect to containerd at {at}: {error}"),
        })?;
        let connected = tokio::time::timeout(PATIENCE, Channel::over(stream)).await;
        let channel = connected
            .map_err(|_| silent(at.to_string()))?
            .map_err(|error| format!("{at} does not speak as containerd does: {error}"))?;
        let namespace = namespace.parse().map_err(|_| format!("{namespace:?} can be no namespace"))?;
        Ok(Self { channel, address: address.to_owned(), namespace })
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        asked(&self.namespace, message)
    }

    async fn answer<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Box<dyn Error>> {
        let at = self.address.display();
        let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| silent(at.to_string()))?;
        answer.map_err(|status| format!("containerd at {at} answers: {}", status.message()).into())
    }

    /// The images of these names, or all; and names that cannot come, each with the reason. An image comes with every name
    /// that containerd has for it.
    pub(super) async fn images(&self, names: &[String]) -> Result<(Vec<Image>, Vec<String>), Box<dyn Error>> {
        let mut client =
            ImagesClient::with_origin(self.channel.clone(), origin()).max_decoding_message_size(MAX_MESSAGE);
        let listed = self.answer(client.list(self.ask(ListImagesRequest::default()))).await?;
        let listed = listed.into_inner().images;
        if listed.is_empty() {
            return Err(self.empty().await?.into());
        }
        let wanted = Wanted::new(names);
        let mut images = BTreeMap::<String, Image>::new();
        let (mut wrong, mut chosen) = (Vec::new(), HashSet::new());
        for one in listed {
            let Some(target) = one.target else {
                wrong.push(format!("{}: containerd does not say what it is", one.name));
                continue;
            };
            if wanted.has(&one.name) {
                chosen.insert(target.digest.clone());
            }
            let pinned = one.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
            let image = images.entry(target.digest.clone());
            let image = image.or_insert_with(|| Image { names: Vec::new(), target, pinned: false });
            image.pinned |= pinned;
            image.names.push(one.name);
        }
        images.retain(|digest, _| chosen.contains(digest));
        let found: HashSet<&String> = images.values().flat_map(|image| &image.names).collect();
        let namespace = self.namespace.to_str().unwrap_or_default();
        let missing = wanted.without(&found);
        wrong.extend(
            missing.map(|name| format!("{name}: containerd has no such image in namespace {namespace}")),
        );
        Ok((images.into_values().collect(), wrong))
    }

    /// What to say where there is nothing.
    async fn empty(&self) -> Result<String, Box<dyn Error>> {
        let mut client = NamespacesClient::with_origin(self.channel.clone(), origin());
        let listed = self.answer(client.list(self.ask(ListNamespacesRequest::default()))).await?;
        let listed = listed.into_inner().namespaces;
        let names: Vec<_> = listed.iter().map(|one| one.name.as_str()).collect();
        let (at, namespace) = (self.address.display(), self.namespace.to_str().unwrap_or_default());
        Ok(format!(
            "containerd at {at} has no images in namespace {namespace}; its namespaces are: {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        ))
    }

    /// The layout of an image. For a thread that may wait.
    pub(super) fn source(&self, image: Image) -> Result<Box<dyn Source>, Box<dyn Error>> {
        let index = index(&image)?;
        Ok(Box::new(Layout {
            content: ContentClient::with_origin(self.channel.clone(), origin())
                .max_decoding_message_size(MAX_MESSAGE),
            namespace: self.namespace.clone(),
            handle: Handle::current(),
            index,
            documents: RefCell::default(),
        }))
    }
}

fn silent(at: String) -> String {
    format!("containerd at {at} has sent nothing for {PATIENCE:?}")
}

fn asked<T>(namespace: &MetadataValue<Ascii>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE, namespace.clone());
    request
}

/// Nobody looks at it.
fn origin() -> Uri {
    Uri::from_static("http://containerd")
}

/// Which images were asked for: as containerd names them, or as a pod does.
struct Wanted<'a> {
    names: Vec<(&'a String, Option<String>)>,
}

impl<'a> Wanted<'a> {
    fn new(names: &'a [String]) -> Self {
        Self { names: names.iter().map(|name| (name, whole_name(name).ok())).collect() }
    }

    fn has(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| is_named(wanted, name))
    }

    /// Those that none of these is.
    fn without(&self, found: &HashSet<&String>) -> impl Iterator<Item = &'a String> {
        self.names
            .iter()
            .filter(|wanted| !found.iter().any(|name| is_named(wanted, name)))
            .map(|(name, _)| *name)
    }
}

fn is_named((name, whole): &(&String, Option<String>), other: &str) -> bool {
    *name == other || (whole.is_some() && *whole == whole_name(other).ok())
}

/// What is no name of a registry: containerd's CRI also calls an image by its id.
fn is_id(name: &str) -> bool {
    name.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64)
}

/// `index.json`: the image under each of its names.
fn index(image: &Image) -> Result<Vec<u8>, Box<dyn Error>> {
    let Descriptor { media_type, digest, size, .. } = &image.target;
    let bare = json!({"mediaType": media_type, "digest": digest, "size": size});
    let mut entries = Vec::new();
    for name in image.names.iter().filter(|name| !is_id(name)) {
        let mut entry = bare.clone();
        entry["annotations"] = json!({"io.containerd.image.name": name});
        entries.push(entry);
    }
    if entries.is_empty() {
        entries.push(bare);
    }
    Ok(serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries}))?)
}

/// One image, as a layout.
struct Layout {
    content: ContentClient<Channel>,
    namespace: MetadataValue<Ascii>,
    handle: Handle,
    index: Vec<u8>,
    /// What was read, by the names of members.
    documents: RefCell<BTreeMap<String, Vec<u8>>>,
}

/// The digest of what a layout has under this name.
fn digest(member: &str) -> Option<String> {
    named_by(member).map(|digest| digest.to_string())
}

impl Layout {
    fn wait<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let limited = async { tokio::time::timeout(PATIENCE, call).await };
        self.handle
            .block_on(limited)
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("sent nothing for {PATIENCE:?}"))))
    }

    /// How large something is in containerd.
    fn size(&self, digest: &str) -> Result<u64, String> {
        let mut content = self.content.clone();
        let request = asked(&self.namespace, InfoRequest { digest: digest.to_owned() });
        let info = self.wait(content.info(request)).map_err(|status| told(&status))?.into_inner().info;
        let size = info.and_then(|info| u64::try_from(info.size).ok());
        size.ok_or_else(|| "containerd does not say how large it is".to_owned())
    }

    /// Gives what something is piece by piece, and says how large it was. `take` says whether it wants more.
    fn read(&self, digest: &str, mut take: impl FnMut(Vec<u8>) -> bool) -> Result<u64, String> {
        let mut content = self.content.clone();
        let message = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let call = content.read(asked(&self.namespace, message));
        let mut stream = self.wait(call).map_err(|status| told(&status))?.into_inner();
        let mut come = 0;
        while let Some(piece) = self.wait(stream.message()).map_err(|status| told(&status))? {
            come += u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
            if !take(piece.data) {
                break;
            }
        }
        Ok(come)
    }

    fn document_bytes(&self, digest: &str, limit: u64) -> Result<Vec<u8>, String> {
        let size = self.size(digest)?;
        if size > limit {
            return Err(format!("has {size} bytes; the limit is image_limits.document_bytes = {limit}"));
        }
        let mut bytes = Vec::new();
        self.read(digest, |piece| {
            bytes.extend_from_slice(&piece);
            u64::try_from(bytes.len()).is_ok_and(|come| come <= size)
        })?;
        Ok(bytes)
    }

    fn send_layer(&self, member: &str, size: u64, pieces: &mut Pieces) -> Result<(), Unread> {
        let digest = digest(member).unwrap_or_default();
        pieces.send(tar::header(member, size));
        let mut left = size;
        let mut is_wanted = true;
        let read = self.read(&digest, |piece| {
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            // More than was said would be taken for what comes next.
            if count > left {
                return false;
            }
            left -= count;
            is_wanted = pieces.send(piece);
            is_wanted
        });
        let come = read.map_err(|reason| Unread::new(&digest, reason))?;
        if is_wanted && come != size {
            return Err(Unread::new(&digest, format!("containerd sent {come} of {size} bytes")));
        }
        pieces.send(vec![0; tar::padding(size)]);
        Ok(())
    }
}

fn told(status: &Status) -> String {
    match status.code() {
        Code::NotFound => "is not in containerd: it drops layers that are unpacked where discard_unpacked_layers is set, and has \
             only those of the platforms that were pulled; pull the image by `cove image pull`"
            .to_owned(),
        _ => format!("containerd answers: {}", status.message()),
    }
}

/// Read once, and kept to be sent.
struct Small<'a>(&'a Layout, u64);

impl Documents for Small<'_> {
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Self(layout, limit) = *self;
        if name == INDEX {
            return Ok(Some(layout.index.clone()));
        }
        if name == DOCKER {
            return Ok(None);
        }
        if let Some(bytes) = layout.documents.borrow().get(name) {
            return Ok(Some(bytes.clone()));
        }
        let Some(digest) = digest(name) else { return Ok(None) };
        let read = layout.document_bytes(&digest, limit);
        let bytes = read.map_err(|reason| ImageError::unread(&digest, &reason))?;
        layout.documents.borrow_mut().insert(name.to_owned(), bytes.clone());
        Ok(Some(bytes))
    }
}

impl Source for Layout {
    fn outline(&self, bounds: &Bounds) -> Result<Outline, ImageError> {
        let limit = u64::try_from(bounds.document_bytes).unwrap_or(u64::MAX);
        Outline::of(&Small(self, limit), bounds)
    }

    fn send(self: Box<Self>, outline: &Outline, pieces: &mut Pieces) -> Result<(), Unread> {
        // Nothing is sent of an image that is not whole.
        let mut layers = Vec::new();
        for member in outline.needed() {
            let digest = digest(&member).unwrap_or_default();
            let size = self.size(&digest).map_err(|reason| Unread::new(&digest, reason))?;
            layers.push((member, size));
        }
        let (layout, text) = LAYOUT;
        let mut documents = vec![(layout.to_owned(), text.to_vec()), (INDEX.to_owned(), self.index.clone())];
        documents.extend(self.documents.take());
        for (name, bytes) in documents {
            let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            pieces.send(tar::header(&name, size));
            pieces.send(bytes);
            pieces.send(vec![0; tar::padding(size)]);
        }
        for (member, size) in layers {
            self.send_layer(&member, size, pieces)?;
        }
        pieces.send(tar::END.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().join("silent.sock");
        let listener = UnixListener::bind(&address).unwrap();
        let node = Node::connect(&address, "k8s.io").await.unwrap();
        let (_held, _) = listener.accept().await.unwrap();
        let error = node.images(&[]).await.unwrap_err().to_string();
        assert!(error.contains("silent.sock has sent nothing for 30s"), "{error}");
    }

    #[test]
    fn an_image_is_asked_for_as_containerd_or_as_a_pod_names_it() {
        let (id, other) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
        let names = [id.clone(), "busybox".to_owned(), "r.io/a:1".to_owned(), "no name at all".to_owned()];
        let wanted = Wanted::new(&names);
        for name in [&id, "docker.io/library/busybox:latest", "r.io/a:1", "no name at all"] {
            assert!(wanted.has(name), "{name}");
        }
        for name in [&other, "docker.io/library/busybox:1", "r.io/a:2", "r.io/a", "some other name"] {
            assert!(!wanted.has(name), "{name}");
        }
        let found = "docker.io/library/busybox:latest".to_owned();
        assert_eq!(
            wanted.without(&HashSet::from([&found])).collect::<Vec<_>>(),
            [&names[0], &names[2], &names[3]]
        );
        assert!(Wanted::new(&[]).has("any"));
    }

    #[test]
    fn an_id_is_no_name() {
        let target =
            Descriptor { media_type: "t".into(), digest: "sha256:0".into(), size: 3, ..Default::default() };
        let id = format!("sha256:{}", "a".repeat(64));
        let index = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let image = Image { names, target: target.clone(), pinned: false };
            serde_json::from_slice::<Value>(&index(&image).unwrap()).unwrap()["manifests"].clone()
        };
        let bare = json!({"mediaType": "t", "digest": "sha256:0", "size": 3});
        assert_eq!(index(&[&id]), json!([bare]));
        let named = index(&["r.io/a:1", &id, "r.io/b:2"]);
        let name = |at: usize| named[at]["annotations"]["io.containerd.image.name"].clone();
        assert_eq!(
            (named.as_array().unwrap().len(), name(0), name(1)),
            (2, "r.io/a:1".into(), "r.io/b:2".into())
        );
    }
}
