/* SPDX-License-Identifier: MIT */
#include "net/secret.h"
#include "util/error.h"

#include <string.h>

typedef struct Secret {
    char *id;
    char *data; /* with a zero byte behind it */
    gsize length;
} Secret;

static GPtrArray *all; /* of Secret *, owned */

static Secret *find(const char *id)
{
    for (guint i = 0; all && i < all->len; i++) {
        Secret *secret = g_ptr_array_index(all, i);

        if (strcmp(secret->id, id) == 0) {
            return secret;
        }
    }
    return NULL;
}

bool secret_exists(const char *id)
{
    return find(id);
}

static void wipe(char *data, gsize length)
{
    if (data) {
        explicit_bzero(data, length);
        g_free(data);
    }
}

static void secret_free(Secret *secret)
{
    wipe(secret->data, secret->length);
    g_free(secret->id);
    g_free(secret);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Secret, secret_free)

static bool read_data(Secret *secret, const SecretProperties *properties, GError **error)
{
    g_autoptr(GError) reason = NULL;

    if (!properties->file == !properties->data) {
        merino_error(error, properties->file ? "'file' and 'data' are mutually exclusive"
                                             : "Either 'file' or 'data' must be provided");
        return false;
    }
    if (properties->data) {
        secret->data = g_strdup(properties->data);
        secret->length = strlen(secret->data);
        return true;
    }
    if (!g_file_get_contents(properties->file, &secret->data, &secret->length, &reason)) {
        merino_error(error, "Unable to read %s: %s", properties->file, reason->message);
        return false;
    }
    return true;
}

/* In place. White space between the digits does not count. */
static bool decode_base64(Secret *secret, GError **error)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
                                 " \t\r\n";

    if (strspn(secret->data, digits) != secret->length) {
        merino_error(error, "Base64 data contains invalid characters");
        return false;
    }
    if (*secret->data) {
        gsize encoded = secret->length;

        g_base64_decode_inplace(secret->data, &secret->length);
        explicit_bzero(secret->data + secret->length, encoded - secret->length);
    }
    return true;
}

bool secret_add(const char *id, const SecretProperties *properties, GError **error)
{
    g_autoptr(Secret) secret = g_new0(Secret, 1);
    bool is_base64 = properties->has_format && properties->format == Q_CRYPTO_SECRET_FORMAT_BASE64;

    if (!read_data(secret, properties, error) || (is_base64 && !decode_base64(secret, error))) {
        return false;
    }
    secret->id = g_strdup(id);
    if (!all) {
        all = g_ptr_array_new();
    }
    g_ptr_array_add(all, g_steal_pointer(&secret));
    return true;
}

bool secret_delete(const char *id, GError **error)
{
    Secret *secret = find(id);

    if (!secret) {
        merino_error(error, "object '%s' not found", id);
        return false;
    }
    g_ptr_array_remove_fast(all, secret);
    secret_free(secret);
    return true;
}

char *secret_copy_text(const char *id, GError **error)
{
    const Secret *secret = find(id);

    if (!secret) {
        merino_error(error, "No secret with id '%s'", id);
        return NULL;
    }
    if (!g_utf8_validate(secret->data, (gssize)secret->length, NULL)) {
        merino_error(error, "Data from secret %s is not valid UTF-8", id);
        return NULL;
    }
    return g_strdup(secret->data);
}

void secret_free_text(char *text)
{
    wipe(text, text ? strlen(text) : 0);
}
