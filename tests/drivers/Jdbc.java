// pgjdbc through whatever PGHOST and PGPORT lead to; the output is compared with a direct run.
// Prints results only: nothing that differs between two correct peers. args[0] makes names unique.
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import org.postgresql.PGConnection;

public class Jdbc {
    static String table;

    static Connection connect(String options) throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/"
            + System.getenv("PGDATABASE") + "?" + options;
        return DriverManager.getConnection(url, System.getenv("PGUSER"), System.getenv("PGPASSWORD"));
    }

    static String one(Statement statement, String sql) throws SQLException {
        try (ResultSet rows = statement.executeQuery(sql)) {
            return rows.next() ? rows.getString(1) : "(no row)";
        }
    }

    static void prepared(Connection connection) throws SQLException {
        // prepareThreshold=2: a named statement from the second execution on.
        try (PreparedStatement plus = connection.prepareStatement("SELECT ?::int + 1");
             Statement between = connection.createStatement()) {
            for (int i = 0; i < 10; i++) {
                plus.setInt(1, i);
                try (ResultSet rows = plus.executeQuery()) {
                    rows.next();
                    if (rows.getInt(1) != i + 1) throw new IllegalStateException("wrong row");
                }
                one(between, "SELECT 1");
            }
        }
        System.out.println("prepared");
    }

    static void batches(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute("CREATE TABLE " + table + " (i int PRIMARY KEY, t text)");
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
                for (int i = 0; i < 500; i++) {
                    insert.setInt(1, i);
                    insert.setString(2, "row " + i);
                    insert.addBatch();
                }
                System.out.println(insert.executeBatch().length);
                insert.setInt(1, 7);
                insert.setString(2, "twice");
                insert.executeUpdate();
            } catch (SQLException error) {
                System.out.println(error.getSQLState());
            }
            System.out.println(one(statement, "SELECT count(*) FROM " + table));
        }
    }

    static void transactions(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(50);
            long sum = 0;
            try (ResultSet rows = statement.executeQuery("SELECT i FROM " + table + " ORDER BY i")) {
                while (rows.next()) sum += rows.getInt(1);
            }
            System.out.println(sum);
            Savepoint savepoint = connection.setSavepoint();
            try {
                statement.executeUpdate("UPDATE " + table + " SET i = 1 / (i - i)");
            } catch (SQLException error) {
                System.out.println(error.getSQLState());
            }
            connection.rollback(savepoint);
            System.out.println(statement.executeUpdate("DELETE FROM " + table + " WHERE i >= 400"));
            connection.commit();
            connection.setReadOnly(true);
            System.out.println(one(statement, "SELECT count(*) FROM " + table));
            try {
                statement.executeUpdate("DELETE FROM " + table);
            } catch (SQLException error) {
                System.out.println(error.getSQLState());
            }
            connection.rollback();
            connection.setReadOnly(false);
            connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            System.out.println(one(statement, "SHOW transaction_isolation"));
            connection.commit();
            connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        }
        connection.setAutoCommit(true);
    }

    static void copies(Connection connection) throws Exception {
        var copy = connection.unwrap(PGConnection.class).getCopyAPI();
        System.out.println(copy.copyIn("COPY " + table + " FROM STDIN", new StringReader("1000\tone\n1001\ttwo\n")));
        StringWriter out = new StringWriter();
        copy.copyOut("COPY (SELECT * FROM " + table + " WHERE i >= 1000 ORDER BY i) TO STDOUT", out);
        System.out.print(out);
    }

    static void cancelling(Connection connection) throws Exception {
        try (Statement sleeper = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    sleeper.cancel();
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            try {
                one(sleeper, "SELECT pg_sleep(30)");
            } catch (SQLException error) {
                System.out.println(error.getSQLState());
            }
            canceller.join();
            sleeper.setQueryTimeout(1);
            try {
                one(sleeper, "SELECT pg_sleep(30)");
            } catch (SQLException error) {
                System.out.println(error.getSQLState());
            }
            sleeper.setQueryTimeout(0);
            System.out.println(one(sleeper, "SELECT 'alive'"));
        }
    }

    public static void main(String[] args) throws Exception {
        table = "jdbc_" + args[0];
        for (String options : new String[] {"prepareThreshold=2", "preferQueryMode=simple", "prepareThreshold=-1&binaryTransfer=true"}) {
            try (Connection connection = connect(options); Statement statement = connection.createStatement()) {
                System.out.println(options);
                prepared(connection);
                batches(connection);
                transactions(connection);
                copies(connection);
                cancelling(connection);
                System.out.println(connection.getMetaData().getDatabaseProductName());
                try (ResultSet columns = connection.getMetaData().getColumns(null, null, table, null)) {
                    while (columns.next()) System.out.println(columns.getString("COLUMN_NAME"));
                }
                statement.execute("DROP TABLE " + table);
            }
        }
    }
}
