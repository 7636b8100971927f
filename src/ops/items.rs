//! Metadata of the leaf: users' items, physical sector size, disk identity (docs/durability.md "Metadata items").

use super::resize::{refuse_children, reshape};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::{self, Item};
use crate::guid::Guid;
use crate::limits;
use crate::units::MIB;

/// A metadata item that a user attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct UserItem {
    /// What it is; the user's choice.
    pub id: Guid,
    /// Bytes.
    pub length: u32,
    /// Whether it belongs to the virtual disk: checkpoints inherit it, and merging a checkpoint brings it along. Others
    /// belong to the one file.
    pub of_disk: bool,
}

/// The users' items of the leaf, in no order.
pub fn meta_list(chain: &Chain) -> Result<Vec<UserItem>> {
    let items = chain.layer(0)?.metadata_items();
    let users = items.into_iter().filter(|item| item.is_user);
    Ok(users
        .map(|item| UserItem {
            id: item.id,
            length: item.length,
            of_disk: item.is_virtual_disk,
        })
        .collect())
}

/// The content of one item.
pub fn meta_get(chain: &Chain, id: Guid) -> Result<Vec<u8>> {
    let _control = chain.control.lock();
    let leaf = chain.layer(0)?;
    leaf.item_bytes(&find(chain, id)?)
}

fn find(chain: &Chain, id: Guid) -> Result<Item> {
    let leaf = chain.layer(0)?;
    let found = leaf
        .metadata_items()
        .into_iter()
        .find(|item| item.is_user && item.id == id);
    found.ok_or_else(|| {
        Error::new(ErrorKind::Argument, format!("the file has no user metadata item {id}"))
            .with_path(leaf.name())
            .with_hint("list the items it has")
    })
}

/// Adds an item, or replaces the one with this id: all of it or, after a power cut, nothing. At most 1024 items, of at
/// most 1 MiB each and 40 MiB together. An item of the disk gives the leaf a new identity, so that is refused while other
/// disks depend on it (`HasChildren`). Writes wait meanwhile. Durable on return.
pub fn meta_set(chain: &Chain, id: Guid, bytes: &[u8], of_disk: bool) -> Result<()> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    if id.is_zero() || bytes.len() as u64 > MIB {
        let message = format!("a metadata item {id} of {} bytes is not possible", bytes.len());
        return Err(Error::new(ErrorKind::Argument, message).with_hint("an item has a nonzero id and at most 1 MiB"));
    }
    let leaf = chain.layer(0)?;
    let others: Vec<Item> = leaf
        .metadata_items()
        .into_iter()
        .filter(|i| i.is_user && i.id != id)
        .collect();
    let total: u64 = others.iter().map(|i| u64::from(i.length)).sum::<u64>() + bytes.len() as u64;
    if others.len() >= limits::MAX_USER_ITEMS || total > limits::MAX_METADATA_CATEGORY_LEN {
        let message = format!("{} user metadata items of {total} bytes are too many", others.len() + 1);
        return Err(Error::new(ErrorKind::NoSpace, message)
            .with_path(leaf.name())
            .with_hint("a file has room for 1024 items and 40 MiB; delete some first"));
    }
    let was_of_disk = find(chain, id).is_ok_and(|old| old.is_virtual_disk);
    if of_disk || was_of_disk {
        refuse_children(chain, &leaf, "change")?;
    }
    let item = Item {
        id,
        offset: 0,
        length: 0,
        is_user: true,
        is_virtual_disk: of_disk,
        is_required: false,
    };
    let _no_writes = chain.gate().write();
    reshape(chain, |leaf| leaf.put_item(item, bytes.to_vec()))
}

/// Removes an item. As for [`meta_set`].
pub fn meta_delete(chain: &Chain, id: Guid) -> Result<()> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let item = find(chain, id)?;
    if item.is_virtual_disk {
        refuse_children(chain, &chain.layer(0)?, "change")?;
    }
    let _no_writes = chain.gate().write();
    reshape(chain, |leaf| leaf.remove_item(&item))
}

/// Sets the physical sector size that the disk reports: 512 or 4096. Refused while other disks depend on the leaf
/// (`HasChildren`). Writes wait meanwhile. Durable on return.
pub fn set_physical_sector_size(chain: &Chain, size: u32) -> Result<()> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    if size != 512 && size != 4096 {
        return Err(
            Error::new(ErrorKind::Argument, format!("a physical sector size of {size}")).with_hint("it is 512 or 4096"),
        );
    }
    set_system_item(chain, metadata::PHYSICAL_SECTOR_SIZE, size.to_le_bytes().to_vec())
}

/// Gives the disk another identity as a guest sees it (SCSI VPD page 0x83): `id`, or a random one. Returns it. As for
/// [`set_physical_sector_size`].
pub fn reset_disk_id(chain: &Chain, id: Option<Guid>) -> Result<Guid> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let id = id.unwrap_or_else(Guid::random);
    if id.is_zero() {
        return Err(
            Error::new(ErrorKind::Argument, "a disk identity of zero").with_hint("leave it out for a random one")
        );
    }
    set_system_item(chain, metadata::VIRTUAL_DISK_ID, id.to_stored().to_vec())?;
    Ok(id)
}

fn set_system_item(chain: &Chain, id: Guid, bytes: Vec<u8>) -> Result<()> {
    let leaf = chain.layer(0)?;
    refuse_children(chain, &leaf, "change")?;
    let item = leaf
        .metadata_items()
        .into_iter()
        .find(|item| item.id == id && !item.is_user)
        .ok_or_else(|| Error::new(ErrorKind::Bug, "an open disk lacks an item"))?;
    let _no_writes = chain.gate().write();
    reshape(chain, |leaf| leaf.put_item(item, bytes))
}
