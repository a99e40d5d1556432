/* SPDX-License-Identifier: MIT */
#include "net/secret.h"
#include "tls-creds-internal.h"
#include "util/error.h"

#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

/* GnuTLS's own, without what the NBD protocol calls too old. */
#define DEFAULT_PRIORITY "NORMAL:-VERS-TLS1.0:-VERS-TLS1.1:-VERS-DTLS1.0"
#define DEFAULT_USER     "qemu"

/* A pre-shared key rules out AES-256-GCM, which needs another hash than the key's; of what is left
 * GnuTLS, and so most clients, would rather have ChaCha20. Where the processor knows AES that costs
 * several times as much. The server chooses. */
#define AES_BEFORE_CHACHA20 ":%SERVER_PRECEDENCE:-CHACHA20-POLY1305:+CHACHA20-POLY1305"

static GPtrArray *all; /* of TlsCreds *, owned */

static TlsCreds *find(const char *id)
{
    for (guint i = 0; all && i < all->len; i++) {
        TlsCreds *creds = g_ptr_array_index(all, i);

        if (strcmp(creds->id, id) == 0) {
            return creds;
        }
    }
    return NULL;
}

static void creds_free(TlsCreds *creds)
{
    if (creds->x509) {
        gnutls_certificate_free_credentials(creds->x509);
    }
    if (creds->psk_server) {
        gnutls_psk_free_server_credentials(creds->psk_server);
    }
    if (creds->psk_client) {
        gnutls_psk_free_client_credentials(creds->psk_client);
    }
    if (creds->dh_params) {
        gnutls_dh_params_deinit(creds->dh_params);
    }
    if (creds->priority) {
        gnutls_priority_deinit(creds->priority);
    }
    g_free(creds->id);
    g_free(creds);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsCreds, creds_free)

bool tls_creds_exists(const char *id)
{
    return find(id);
}

bool tls_creds_delete(const char *id, GError **error)
{
    TlsCreds *creds = find(id);

    if (!creds) {
        merino_error(error, "object '%s' not found", id);
        return false;
    }
    if (creds->users) {
        merino_error(error, "object '%s' is in use, can not be deleted", id);
        return false;
    }
    g_ptr_array_remove_fast(all, creds);
    creds_free(creds);
    return true;
}

TlsCreds *tls_creds_acquire_server(const char *id, GError **error)
{
    TlsCreds *creds = find(id);

    if (!creds) {
        merino_error(error, "No TLS credentials with id '%s'", id);
        return NULL;
    }
    if (!creds->server) {
        merino_error(error, "Expected TLS credentials for a server endpoint");
        return NULL;
    }
    creds->users++;
    return creds;
}

void tls_creds_release(TlsCreds *creds)
{
    if (creds) {
        creds->users--;
    }
}

/* --- what both kinds have --- */

static bool processor_knows_aes(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
    return getauxval(AT_HWCAP) & HWCAP_AES;
#else
    return false;
#endif
}

static const char *default_priority(void)
{
    return processor_knows_aes() ? DEFAULT_PRIORITY AES_BEFORE_CHACHA20 : DEFAULT_PRIORITY;
}

/* `suffix` is what the kind needs beyond the priority that the user chose. */
static TlsCreds *creds_new(const char *id, TlsCredsKind kind, const TlsCredsProperties *properties,
                           const char *suffix, GError **error)
{
    g_autoptr(TlsCreds) creds = g_new0(TlsCreds, 1);
    g_autofree char *priority =
        g_strconcat(properties->priority ? properties->priority : default_priority(), suffix, NULL);
    const char *rest = NULL;

    creds->id = g_strdup(id);
    creds->kind = kind;
    creds->server =
        properties->has_endpoint && properties->endpoint == Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER;
    creds->verify_peer = !properties->has_verify_peer || properties->verify_peer;
    if (!properties->dir) {
        merino_error(error, "Missing 'dir' property value");
        return NULL;
    }
    if (gnutls_priority_init(&creds->priority, priority, &rest) < 0) {
        creds->priority = NULL;
        merino_error(error, "TLS priority string '%s' is not understood from '%s' on", priority,
                     rest ? rest : priority);
        return NULL;
    }
    return g_steal_pointer(&creds);
}

static void creds_register(TlsCreds *creds)
{
    if (!all) {
        all = g_ptr_array_new();
    }
    g_ptr_array_add(all, creds);
}

bool tls_creds_path(const char *dir, const char *name, bool required, char **ret_path,
                    GError **error)
{
    g_autofree char *path = g_strconcat(dir, "/", name, NULL);

    if (access(path, R_OK) < 0) {
        *ret_path = NULL;
        if (required || errno != ENOENT) {
            merino_error_errno(error, errno, "Unable to access credentials %s", path);
            return false;
        }
        return true;
    }
    *ret_path = g_steal_pointer(&path);
    return true;
}

/* --- x509 --- */

static void files_done(TlsX509Files *files)
{
    g_free(files->ca_cert);
    g_free(files->ca_crl);
    g_free(files->cert);
    g_free(files->key);
    g_free(files->dh_params);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(TlsX509Files, files_done)

static bool find_x509_files(const char *dir, bool server, TlsX509Files *ret_files, GError **error)
{
    return tls_creds_path(dir, "ca-cert.pem", true, &ret_files->ca_cert, error) &&
           tls_creds_path(dir, "ca-crl.pem", false, &ret_files->ca_crl, error) &&
           tls_creds_path(dir, server ? "server-cert.pem" : "client-cert.pem", server,
                          &ret_files->cert, error) &&
           tls_creds_path(dir, server ? "server-key.pem" : "client-key.pem", server,
                          &ret_files->key, error) &&
           (!server || tls_creds_path(dir, "dh-params.pem", false, &ret_files->dh_params, error));
}

/* Without such a file GnuTLS has groups of its own. */
static bool load_dh_params(TlsCreds *creds, const char *path, GError **error)
{
    g_autofree char *text = NULL;
    gnutls_datum_t datum;
    gsize size;
    int ret;

    if (!g_file_get_contents(path, &text, &size, error)) {
        return false;
    }
    datum = (gnutls_datum_t){ (unsigned char *)text, (unsigned)size };
    ret = gnutls_dh_params_init(&creds->dh_params);
    if (ret >= 0) {
        ret = gnutls_dh_params_import_pkcs3(creds->dh_params, &datum, GNUTLS_X509_FMT_PEM);
    }
    if (ret < 0) {
        merino_error(error, "Unable to load DH parameters from %s: %s", path, gnutls_strerror(ret));
        return false;
    }
    gnutls_certificate_set_dh_params(creds->x509, creds->dh_params);
    return true;
}

/* The certificate and its key, which may need a password. */
static bool load_key(TlsCreds *creds, const TlsX509Files *files, const char *password_id,
                     GError **error)
{
    char *password = NULL;
    int ret;

    if (!files->cert || !files->key) {
        return true;
    }
    if (password_id) {
        password = secret_copy_text(password_id, error);
        if (!password) {
            return false;
        }
    }
    ret = gnutls_certificate_set_x509_key_file2(creds->x509, files->cert, files->key,
                                                GNUTLS_X509_FMT_PEM, password, 0);
    secret_free_text(password);
    if (ret < 0) {
        merino_error(error, "Cannot load certificate '%s' & key '%s': %s", files->cert, files->key,
                     gnutls_strerror(ret));
    }
    return ret >= 0;
}

static bool load_x509(TlsCreds *creds, const TlsX509Files *files, const char *password_id,
                      GError **error)
{
    int ret = gnutls_certificate_allocate_credentials(&creds->x509);

    if (ret < 0) {
        merino_error(error, "Cannot allocate credentials: %s", gnutls_strerror(ret));
        return false;
    }
    ret = gnutls_certificate_set_x509_trust_file(creds->x509, files->ca_cert, GNUTLS_X509_FMT_PEM);
    if (ret < 0) {
        merino_error(error, "Cannot load CA certificate '%s': %s", files->ca_cert,
                     gnutls_strerror(ret));
        return false;
    }
    if (!load_key(creds, files, password_id, error)) {
        return false;
    }
    ret = files->ca_crl ? gnutls_certificate_set_x509_crl_file(creds->x509, files->ca_crl,
                                                               GNUTLS_X509_FMT_PEM)
                        : 0;
    if (ret < 0) {
        merino_error(error, "Cannot load CRL '%s': %s", files->ca_crl, gnutls_strerror(ret));
        return false;
    }
    return !files->dh_params || load_dh_params(creds, files->dh_params, error);
}

bool tls_creds_add_x509(const char *id, const TlsCredsX509Properties *properties, GError **error)
{
    bool check = !properties->has_sanity_check || properties->sanity_check;
    g_auto(TlsX509Files) files = { 0 };
    TlsCredsProperties common = {
        properties->has_verify_peer, properties->verify_peer, properties->dir,
        properties->has_endpoint,    properties->endpoint,    properties->priority
    };
    g_autoptr(TlsCreds) creds = creds_new(id, TLS_CREDS_X509, &common, "", error);

    if (!creds || !find_x509_files(properties->dir, creds->server, &files, error) ||
        (check && !tls_creds_check_x509(&files, creds->server, error)) ||
        !load_x509(creds, &files, properties->passwordid, error)) {
        return false;
    }
    creds_register(g_steal_pointer(&creds));
    return true;
}

/* --- pre-shared keys --- */

/* The user's key, in hexadecimal digits. The caller frees. */
static char *find_key(const char *path, const char *user, GError **error)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    size_t length = strlen(user);

    if (!g_file_get_contents(path, &text, NULL, error)) {
        return NULL;
    }
    lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        if (strncmp(*line, user, length) == 0 && (*line)[length] == ':') {
            return g_strdup(g_strchomp(*line + length + 1));
        }
    }
    merino_error(error, "Username %s not found in PSK file %s", user, path);
    return NULL;
}

static bool load_psk_server(TlsCreds *creds, const char *path, GError **error)
{
    int ret = gnutls_psk_allocate_server_credentials(&creds->psk_server);

    if (ret >= 0) {
        ret = gnutls_psk_set_server_credentials_file(creds->psk_server, path);
    }
    if (ret < 0) {
        merino_error(error, "Cannot set PSK server credentials: %s", gnutls_strerror(ret));
    }
    return ret >= 0;
}

static bool load_psk_client(TlsCreds *creds, const char *path, const char *user, GError **error)
{
    g_autofree char *key = find_key(path, user, error);
    gnutls_datum_t datum = { (unsigned char *)key, key ? (unsigned)strlen(key) : 0 };
    int ret;

    if (!key) {
        return false;
    }
    ret = gnutls_psk_allocate_client_credentials(&creds->psk_client);
    if (ret >= 0) {
        ret =
            gnutls_psk_set_client_credentials(creds->psk_client, user, &datum, GNUTLS_PSK_KEY_HEX);
    }
    if (ret < 0) {
        merino_error(error, "Cannot set PSK client credentials: %s", gnutls_strerror(ret));
    }
    return ret >= 0;
}

bool tls_creds_add_psk(const char *id, const TlsCredsPskProperties *properties, GError **error)
{
    const char *user = properties->username ? properties->username : DEFAULT_USER;
    TlsCredsProperties common = {
        properties->has_verify_peer, properties->verify_peer, properties->dir,
        properties->has_endpoint,    properties->endpoint,    properties->priority
    };
    /* The kinds of key exchange differ between the versions of TLS, and all must be named. */
    g_autoptr(TlsCreds) creds =
        creds_new(id, TLS_CREDS_PSK, &common, ":+ECDHE-PSK:+DHE-PSK:+PSK", error);
    g_autofree char *path = NULL;

    if (!creds) {
        return false;
    }
    if (creds->server && properties->username) {
        merino_error(error, "username should not be set when endpoint=server");
        return false;
    }
    if (!tls_creds_path(properties->dir, "keys.psk", true, &path, error) ||
        !(creds->server ? load_psk_server(creds, path, error)
                        : load_psk_client(creds, path, user, error))) {
        return false;
    }
    creds_register(g_steal_pointer(&creds));
    return true;
}
