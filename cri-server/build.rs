//! Generates the wire types and service traits from `proto/`, without protoc: the CRI's, and those of Cove's own command
//! line, which has a client, too.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        // Sorted maps: records and replies come out the same each time.
        .btree_map(".")
        // Holds passwords: its Debug is written by hand and shows none.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    let own = protox::compile(["images.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".cove.images.v1.ImportRequest")
        .bytes(".cove.images.v1.ExportPiece")
        .skip_debug(["cove.images.v1.PullRequest", "cove.images.v1.RepairRequest"])
        .compile_fds(own)?;
    Ok(())
}
