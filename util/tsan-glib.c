/* SPDX-License-Identifier: MIT */
/*
 * GLib's locks, told to ThreadSanitizer. Only in builds with -Db_sanitize=thread.
 *
 * The installed GLib is not instrumented and builds its locks on futexes, so the sanitizer would
 * see no order between what two threads do under the same GMutex. These functions stand in front
 * of GLib's own, call them, and say what they have ordered.
 */
#include <dlfcn.h>
#include <glib.h>
#include <sanitizer/tsan_interface.h>

/* GLib's function of the same name, looked up at the first call. */
#define REAL(name)                                                                                 \
    ({                                                                                             \
        static __typeof__(name) *real_##name;                                                      \
        if (!__atomic_load_n(&real_##name, __ATOMIC_RELAXED)) {                                    \
            __atomic_store_n(&real_##name, (__typeof__(name) *)dlsym(RTLD_NEXT, #name),            \
                             __ATOMIC_RELAXED);                                                    \
        }                                                                                          \
        __atomic_load_n(&real_##name, __ATOMIC_RELAXED);                                           \
    })

#define WRAP_LOCK(name, type)                                                                      \
    void name(type *lock)                                                                          \
    {                                                                                              \
        REAL(name)(lock);                                                                          \
        __tsan_acquire(lock);                                                                      \
    }

#define WRAP_TRYLOCK(name, type)                                                                   \
    gboolean name(type *lock)                                                                      \
    {                                                                                              \
        gboolean taken = REAL(name)(lock);                                                         \
                                                                                                   \
        if (taken) {                                                                               \
            __tsan_acquire(lock);                                                                  \
        }                                                                                          \
        return taken;                                                                              \
    }

#define WRAP_UNLOCK(name, type)                                                                    \
    void name(type *lock)                                                                          \
    {                                                                                              \
        __tsan_release(lock);                                                                      \
        REAL(name)(lock);                                                                          \
    }

WRAP_LOCK(g_mutex_lock, GMutex)
WRAP_TRYLOCK(g_mutex_trylock, GMutex)
WRAP_UNLOCK(g_mutex_unlock, GMutex)
WRAP_LOCK(g_rec_mutex_lock, GRecMutex)
WRAP_TRYLOCK(g_rec_mutex_trylock, GRecMutex)
WRAP_UNLOCK(g_rec_mutex_unlock, GRecMutex)
WRAP_LOCK(g_rw_lock_writer_lock, GRWLock)
WRAP_TRYLOCK(g_rw_lock_writer_trylock, GRWLock)
WRAP_UNLOCK(g_rw_lock_writer_unlock, GRWLock)
WRAP_LOCK(g_rw_lock_reader_lock, GRWLock)
WRAP_TRYLOCK(g_rw_lock_reader_trylock, GRWLock)
WRAP_UNLOCK(g_rw_lock_reader_unlock, GRWLock)

void g_cond_wait(GCond *cond, GMutex *mutex)
{
    __tsan_release(mutex);
    REAL(g_cond_wait)(cond, mutex);
    __tsan_acquire(mutex);
}

gboolean g_cond_wait_until(GCond *cond, GMutex *mutex, gint64 end_time)
{
    gboolean signalled;

    __tsan_release(mutex);
    signalled = REAL(g_cond_wait_until)(cond, mutex, end_time);
    __tsan_acquire(mutex);
    return signalled;
}

/* Macros of these names wrap them. */
#undef g_once_init_enter
#undef g_once_init_leave

gboolean g_once_init_enter(volatile void *location)
{
    gboolean enter = REAL(g_once_init_enter)(location);

    __tsan_acquire((void *)location);
    return enter;
}

void g_once_init_leave(volatile void *location, gsize result)
{
    __tsan_release((void *)location);
    REAL(g_once_init_leave)(location, result);
}
