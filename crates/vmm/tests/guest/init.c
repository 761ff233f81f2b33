/* The smallest agent that shows what a guest can see: loads the modules in order, finds the channel by its name, says
 * hello, then answers one-letter commands. For tests only. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void line(const char *path, char *out, int size)
{
    FILE *file = fopen(path, "r");
    out[0] = 0;
    if (file) {
        if (!fgets(out, size, file)) out[0] = 0;
        fclose(file);
    }
    out[strcspn(out, "\n")] = 0;
}

static double uptime(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* The entry of a class whose attribute has this value, or nothing. */
static int find(const char *class, const char *attribute, const char *value, char *name, int size)
{
    char path[600], found[64];
    struct dirent *entry;
    DIR *dir = opendir(class);
    name[0] = 0;
    while (dir && (entry = readdir(dir))) {
        snprintf(path, sizeof path, "%s/%s/%s", class, entry->d_name, attribute);
        line(path, found, sizeof found);
        if (!strcmp(found, value)) snprintf(name, size, "%s", entry->d_name);
    }
    if (dir) closedir(dir);
    return name[0] != 0;
}

static void modules(void)
{
    char path[256];
    FILE *order = fopen("/modules/order", "r");
    while (order && fgets(path, sizeof path, order)) {
        path[strcspn(path, "\n")] = 0;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0) perror(path);
        close(fd);
    }
}

/* Mounts the disk with this serial number and reads its file /greeting. */
static void disk(int channel, const char *serial, const char *type)
{
    char name[256], device[300], text[128];
    find("/sys/block", "serial", serial, name, sizeof name);
    snprintf(device, sizeof device, "/dev/%s", name);
    mkdir("/disk", 0755);
    if (mount(device, "/disk", type, !strcmp(type, "erofs") ? MS_RDONLY : 0, "") < 0) {
        dprintf(channel, "cannot mount %s: %m\n", serial);
        return;
    }
    if (!strcmp(type, "erofs")) {
        line("/disk/greeting", text, sizeof text);
    } else {
        int fd = open("/disk/written", O_CREAT | O_WRONLY | O_TRUNC, 0644);
        snprintf(text, sizeof text, "%s", write(fd, "x", 1) == 1 && fsync(fd) == 0 ? "written" : "not written");
        close(fd);
    }
    umount("/disk");
    dprintf(channel, "%s\n", text);
}

static void speed(int channel, const char *serial)
{
    static char buffer[1 << 20];
    char name[256], device[300];
    long total = 0, n;
    find("/sys/block", "serial", serial, name, sizeof name);
    snprintf(device, sizeof device, "/dev/%s", name);
    double start = uptime();
    int fd = open(device, O_RDONLY);
    while ((n = read(fd, buffer, sizeof buffer)) > 0) total += n;
    close(fd);
    dprintf(channel, "%ld %.3f\n", total, uptime() - start);
}

int main(void)
{
    char name[256], path[300], command[128];
    void *memory = NULL;
    size_t size = 0;
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    mount("proc", "/proc", "proc", 0, 0);
    mount("sys", "/sys", "sysfs", 0, 0);
    double start = uptime();
    modules();
    double loaded = uptime();
    while (!find("/sys/class/virtio-ports", "name", "cumulet.0", name, sizeof name)) usleep(1000);
    snprintf(path, sizeof path, "/dev/%s", name);
    int channel = open(path, O_RDWR | O_CLOEXEC), n;
    printf("agent: console works\n");
    fflush(stdout);
    dprintf(channel, "hello %.3f %.3f %.3f\n", start, loaded, uptime());
    while ((n = read(channel, command, sizeof command - 1)) > 0) {
        command[n] = 0;
        command[strcspn(command, "\n")] = 0;
        switch (command[0]) {
        case 'e': disk(channel, command + 2, "erofs"); break;
        case 's': disk(channel, command + 2, "ext4"); break;
        case 'r': speed(channel, command + 2); break;
        case 'v': /* a directory of the host: reads its greeting, answers into it */
            mkdir("/shared", 0755);
            if (mount(command + 2, "/shared", "virtiofs", 0, "") < 0) {
                dprintf(channel, "cannot mount: %m\n");
                break;
            }
            line("/shared/greeting", path, sizeof path);
            n = open("/shared/answer", O_CREAT | O_WRONLY, 0644);
            if (write(n, "answer", 6) != 6) strcpy(path, "cannot write");
            close(n);
            umount("/shared");
            dprintf(channel, "%s\n", path);
            break;
        case 'm': /* the first network device's address */
            line("/sys/class/net/eth0/address", path, sizeof path);
            dprintf(channel, "%s\n", path);
            break;
        case 'a': /* so many bytes of memory, used */
            size = strtoul(command + 2, NULL, 10);
            memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            dprintf(channel, "%s\n", memory == MAP_FAILED ? "none" : memset(memory, 1, size) ? "used" : "");
            break;
        case 'f': /* that memory, freed */
            dprintf(channel, "%s\n", munmap(memory, size) ? "not freed" : "freed");
            break;
        case 't': dprintf(channel, "%.3f\n", uptime()); break;
        case 'p': return 1; /* the end of /init is a panic */
        case 'q': reboot(RB_POWER_OFF); break;
        default: dprintf(channel, "%s\n", command);
        }
    }
    for (;;) pause();
}
