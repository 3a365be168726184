// Asks the console through pgjdbc, with and without autocommit, with a fetch size and server-side prepared.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

public class Jdbc {
    public static void main(String[] arguments) throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + arguments[0]
            + "?user=" + System.getenv("PGUSER") + "&password=" + System.getenv("PGPASSWORD") + "&ApplicationName=jdbc&prepareThreshold=2";
        try (Connection connection = DriverManager.getConnection(url)) {
            try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery("SHOW VERSION")) {
                rows.next();
                System.out.println("version " + rows.getString("version").startsWith("pgregent "));
            }
            try (PreparedStatement statement = connection.prepareStatement("SHOW LISTS")) {
                for (int round = 0; round < 5; round++) {
                    try (ResultSet rows = statement.executeQuery()) {
                        int count = 0;
                        while (rows.next()) {
                            if (++count == 3) {
                                System.out.println("lists " + rows.getString(1) + " " + rows.getInt(2));
                            }
                        }
                        System.out.println("rows " + count);
                    }
                }
            }
            connection.setAutoCommit(false);
            try (PreparedStatement statement = connection.prepareStatement("SHOW LISTS")) {
                statement.setFetchSize(5);
                try (ResultSet rows = statement.executeQuery()) {
                    int count = 0;
                    while (rows.next()) {
                        count++;
                    }
                    System.out.println("fetched " + count);
                }
            }
            try (Statement statement = connection.createStatement()) {
                statement.executeQuery("SHOW NONSENSE");
            } catch (SQLException error) {
                System.out.println("error " + error.getSQLState());
            }
            connection.rollback();
            connection.setAutoCommit(true);
            System.out.println("valid " + connection.isValid(5) + " " + connection.getTransactionIsolation());
        }
    }
}
