//! Vectors that hand out typed keys. A key comes from its arena alone and nothing is ever taken out, so looking one up
//! cannot fail.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A key of an [`Arena`].
pub trait Key: Copy {
    /// The key of a place.
    fn new(place: u32) -> Self;
    /// The place of a key.
    fn place(self) -> u32;
}

/// A vector whose places are keys.
#[derive(Debug, Clone)]
pub struct Arena<K, T> {
    items: Vec<T>,
    key: PhantomData<K>,
}

impl<K, T> Default for Arena<K, T> {
    fn default() -> Self {
        Self { items: Vec::new(), key: PhantomData }
    }
}

impl<K: Key, T> Arena<K, T> {
    pub(crate) fn push(&mut self, item: T) -> K {
        let key = self.next_key();
        self.items.push(item);
        key
    }

    /// The key that the next item will have.
    pub(crate) fn next_key(&self) -> K {
        K::new(u32::try_from(self.items.len()).unwrap_or(u32::MAX))
    }

    /// All items, in the order in which they were added.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (K, &T)> + ExactSizeIterator {
        self.items.iter().enumerate().map(|(place, item)| (K::new(u32::try_from(place).unwrap_or(u32::MAX)), item))
    }

    pub(crate) fn keys(&self) -> impl DoubleEndedIterator<Item = K> + use<K, T> {
        (0..u32::try_from(self.items.len()).unwrap_or(u32::MAX)).map(K::new)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl<K: Key, T> Index<K> for Arena<K, T> {
    type Output = T;

    fn index(&self, key: K) -> &T {
        match self.items.get(key.place() as usize) {
            Some(item) => item,
            None => unreachable!("a key of another arena"),
        }
    }
}

impl<K: Key, T> IndexMut<K> for Arena<K, T> {
    fn index_mut(&mut self, key: K) -> &mut T {
        match self.items.get_mut(key.place() as usize) {
            Some(item) => item,
            None => unreachable!("a key of another arena"),
        }
    }
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl Key for $name {
            fn new(place: u32) -> Self {
                Self(place)
            }

            fn place(self) -> u32 {
                self.0
            }
        }
    )*};
}

keys! {
    /// A group of a world.
    GroupId;
    /// An instance of a world.
    InstanceId;
    /// A node of a world.
    NodeId;
    /// A pod of a world.
    PodId;
    /// A workload of a world.
    WorkloadId;
    /// A budget of a world.
    BudgetId;
}
