import java.io.RandomAccessFile;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;

/** Threads, a heap, timers and a file in a JVM, which checks itself. Usage: Threads ASK DIR */
public class Threads {
    static final Queue<String> problems = new ConcurrentLinkedQueue<>();
    static final Map<String, AtomicLong> counts = new ConcurrentSkipListMap<>();

    static void count(String what) { counts.computeIfAbsent(what, w -> new AtomicLong()).incrementAndGet(); }

    interface Step { void run() throws Exception; }

    static void forever(String name, Step step) {
        Thread t = new Thread(() -> {
            try {
                for (long last = System.nanoTime(); ; count(name)) {
                    step.run();
                    long now = System.nanoTime();
                    if (now < last) problems.add(name + ": the clock went back");
                    last = now;
                }
            } catch (Throwable e) {
                problems.add(name + ": " + e);
            }
        }, name);
        t.setDaemon(true);
        t.start();
    }

    static long mix(long x) { x ^= x >>> 30; x *= 0xbf58476d1ce4e5b9L; x ^= x >>> 27; return x * 0x94d049bb133111ebL; }

    public static void main(String[] args) throws Exception {
        Path ask = Path.of(args[0]);
        SynchronousQueue<Long> ring = new SynchronousQueue<>();
        long[] next = {0, 0};
        forever("put", () -> { ring.put(next[0]++); });
        forever("take", () -> {
            long got = ring.take();
            if (got != next[1]++) problems.add("took " + got + " and not " + (next[1] - 1));
            Thread.sleep(1);
        });
        Map<Integer, long[]> heap = new HashMap<>();
        Random random = new Random(1);
        forever("heap", () -> {
            for (int i = 0; i < 50; i++) {
                int key = random.nextInt(5000);
                long[] data = heap.get(key);
                if (data != null)
                    for (int j = 1; j < data.length; j++)
                        if (data[j] != mix(data[0] + j)) { problems.add("object " + key + " has changed"); break; }
                data = new long[1 + random.nextInt(200)];
                data[0] = random.nextLong();
                for (int j = 1; j < data.length; j++) data[j] = mix(data[0] + j);
                heap.put(key, data);
            }
            Thread.sleep(1);
        });
        RandomAccessFile file = new RandomAccessFile(Path.of(args[1], "longs").toFile(), "rw");
        long[] written = {0};
        forever("file", () -> {
            file.seek(8 * written[0]);
            file.writeLong(mix(written[0]++));
            long at = (long) (Math.random() * written[0]);
            file.seek(8 * at);
            if (file.readLong() != mix(at)) problems.add("number " + at + " of the file is wrong");
            Thread.sleep(1);
        });
        long pid = ProcessHandle.current().pid();
        System.out.println("ready Threads " + pid);
        for (;;) {
            if (!Files.exists(ask)) { Thread.sleep(10); continue; }
            String token = Files.readString(ask);
            Files.delete(ask);
            System.gc();
            Map<String, Long> before = new HashMap<>();
            counts.forEach((name, n) -> before.put(name, n.get()));
            for (int i = 0; i < 1000 && before.entrySet().stream().anyMatch(b -> counts.get(b.getKey()).get() == b.getValue()); i++) Thread.sleep(10);
            before.forEach((name, n) -> { if (counts.get(name).get() == n) problems.add(name + " stands still"); });
            StringJoiner texts = new StringJoiner(","), numbers = new StringJoiner(",");
            problems.forEach(p -> texts.add("\"" + p.replace("\\", "").replace("\"", "'") + "\""));
            counts.forEach((name, n) -> numbers.add("\"" + name + "\":" + n));
            String host = Files.readString(Path.of("/proc/sys/kernel/hostname")).trim();
            Path answer = Path.of(args[0] + ".new");
            Files.writeString(answer, "{\"program\":\"Threads\",\"token\":\"" + token + "\",\"pid\":" + pid + ",\"host\":\"" + host
                + "\",\"ok\":" + problems.isEmpty() + ",\"problems\":[" + texts + "],\"counts\":{" + numbers + "}}");
            Files.move(answer, Path.of(args[0] + ".answer"), StandardCopyOption.ATOMIC_MOVE);
        }
    }
}
