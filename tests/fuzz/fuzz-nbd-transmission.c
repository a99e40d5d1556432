/* SPDX-License-Identifier: MIT */
/*
 * NBD requests, after a negotiation that the first byte of the input chooses:
 *   bits 0-1  form: simple, structured, extended, extended again
 *   bits 2-3  export: disk, frozen, huge, empty
 *   bit 4     with all metadata contexts
 */
#include "block/export/nbd/protocol.h"
#include "disks.h"
#include "fuzz.h"
#include "nbd-client.h"

#include <string.h>

static const struct {
    const char *name;
    const char *contexts[6];
} exports[] = {
    { "disk",
      { "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:new",
        "qemu:dirty-bitmap:coarse", "qemu:dirty-bitmap:old" } },
    { "frozen", { "base:allocation" } },
    { "huge", { "base:allocation", "qemu:dirty-bitmap:new" } },
    { "", { "base:allocation" } },
};

static void put16(GByteArray *out, guint16 value)
{
    guint8 bytes[2];

    nbd_put16(bytes, value);
    g_byte_array_append(out, bytes, sizeof(bytes));
}

static void put32(GByteArray *out, guint32 value)
{
    guint8 bytes[4];

    nbd_put32(bytes, value);
    g_byte_array_append(out, bytes, sizeof(bytes));
}

static void put_string(GByteArray *out, const char *text)
{
    put32(out, (guint32)strlen(text));
    g_byte_array_append(out, (const guint8 *)text, (guint)strlen(text));
}

static void put_option(GByteArray *out, NbdOption option, const GByteArray *data)
{
    guint8 magic[8];

    nbd_put64(magic, NBD_OPTION_MAGIC);
    g_byte_array_append(out, magic, sizeof(magic));
    put32(out, option);
    put32(out, data->len);
    g_byte_array_append(out, data->data, data->len);
}

static void put_contexts(GByteArray *out, unsigned which)
{
    g_autoptr(GByteArray) data = g_byte_array_new();
    guint32 n = 0;

    while (exports[which].contexts[n]) {
        n++;
    }
    put_string(data, exports[which].name);
    put32(data, n);
    for (guint32 i = 0; i < n; i++) {
        put_string(data, exports[which].contexts[i]);
    }
    put_option(out, NBD_OPT_SET_META_CONTEXT, data);
}

static void put_go(GByteArray *out, unsigned which)
{
    g_autoptr(GByteArray) data = g_byte_array_new();

    put_string(data, exports[which].name);
    put16(data, 0);
    put_option(out, NBD_OPT_GO, data);
}

static void put_negotiation(GByteArray *out, unsigned choice)
{
    g_autoptr(GByteArray) nothing = g_byte_array_new();
    unsigned form = choice & 3;
    unsigned which = choice >> 2 & 3;

    put32(out, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (form) {
        put_option(out, form == 1 ? NBD_OPT_STRUCTURED_REPLY : NBD_OPT_EXTENDED_HEADERS, nothing);
    }
    if (form && (choice & 16)) {
        put_contexts(out, which);
    }
    put_go(out, which);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    if (size == 0) {
        return 0;
    }
    put_negotiation(bytes, data[0]);
    g_byte_array_append(bytes, data + 1, (guint)size - 1);
    nbd_make_exports();
    nbd_exchange(bytes->data, bytes->len, false);
    disks_clear();
    return 0;
}
