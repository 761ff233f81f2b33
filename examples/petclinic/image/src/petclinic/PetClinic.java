package petclinic;

import java.lang.management.ManagementFactory;
import java.time.Duration;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.server.handler.StatisticsHandler;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;
import org.eclipse.jetty.util.thread.QueuedThreadPool;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.web.context.support.XmlWebApplicationContext;
import org.springframework.web.servlet.DispatcherServlet;

/**
 * The program: a Jetty server with one servlet, Spring's dispatcher.
 *
 * <p>The port opens only after the Spring context and the database are ready, so a connection that is accepted is also
 * answered. On SIGTERM requests under way are finished first.
 */
public final class PetClinic {
    private static final int MAX_THREADS = 24;
    private static final int MIN_THREADS = 4;
    private static final long STOP_TIMEOUT_MILLIS = 5_000;

    private PetClinic() {}

    public static void main(String[] arguments) throws Exception {
        Logger log = LoggerFactory.getLogger(PetClinic.class);
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "8080"));
        Server server = server(port);
        try {
            server.start();
        } catch (Exception failure) {
            log.error("cannot start on port {}", port, failure);
            System.exit(1);
        }
        log.info("listening on port {}, {} ms after the start of the process", port, uptime().toMillis());
        server.join();
    }

    /** Time since the virtual machine began to run. */
    static Duration uptime() {
        return Duration.ofMillis(ManagementFactory.getRuntimeMXBean().getUptime());
    }

    private static Server server(int port) {
        Server server = new Server(new QueuedThreadPool(MAX_THREADS, MIN_THREADS));
        HttpConfiguration http = new HttpConfiguration();
        http.setSendServerVersion(false);
        ServerConnector connector = new ServerConnector(server, 1, 1, new HttpConnectionFactory(http));
        connector.setPort(port);
        server.addConnector(connector);

        XmlWebApplicationContext spring = new XmlWebApplicationContext();
        spring.setConfigLocation("classpath:clinic.xml");
        DispatcherServlet dispatcher = new DispatcherServlet(spring);
        dispatcher.setThrowExceptionIfNoHandlerFound(true);
        ServletHolder holder = new ServletHolder("clinic", dispatcher);
        holder.setInitOrder(1);
        ServletContextHandler context = new ServletContextHandler(ServletContextHandler.NO_SESSIONS);
        context.addServlet(holder, "/");

        // Only with a handler that counts requests can Jetty wait for them when it stops.
        StatisticsHandler counted = new StatisticsHandler();
        counted.setHandler(context);
        server.setHandler(counted);
        server.setStopAtShutdown(true);
        server.setStopTimeout(STOP_TIMEOUT_MILLIS);
        return server;
    }
}
